# What a wheel holds: the core as one shared library, and for each torch a thin adapter beside it,
# the extension module without the core. Python chooses the adapter (fusedopt/_load.py).
#
# FUSEDOPT_ADAPTERS lists folders that hold torch/include and torch/version.py, as
# cmake/torch_headers.py makes them. Nothing of torch is linked: an adapter names torch's libraries
# by their sonames, and they are loaded before it.

# Lets a library that is linked to a newer glibc and libstdc++ load from manylinux_2_28 on.
set(old_functions pthread_mutex_trylock)
if(NOT cuda MATCHES "^none")  # what cudart calls
  list(APPEND old_functions dlclose dlerror dlopen dlsym pthread_attr_destroy pthread_attr_init
       pthread_attr_setstacksize pthread_create pthread_detach pthread_join pthread_key_create
       pthread_key_delete pthread_once pthread_rwlock_rdlock pthread_rwlock_unlock
       pthread_rwlock_wrlock sem_close sem_destroy sem_getvalue sem_init sem_open sem_post
       sem_timedwait sem_trywait sem_unlink sem_wait shm_open shm_unlink)
endif()
set(old_file cmake/glibc/old.cpp)
file(STRINGS ${old_file} lines REGEX "WRAP\\(_Z")
string(REGEX MATCHALL "_Z[A-Za-z0-9_]+" wrapped "${lines}")
list(APPEND wrapped ${old_functions})
list(TRANSFORM wrapped PREPEND "-Wl,--wrap=")
list(TRANSFORM old_functions REPLACE "(.+)" "OLD(\"\\1\")")
list(JOIN old_functions " " old_functions)
set_source_files_properties(${old_file} PROPERTIES
                            COMPILE_DEFINITIONS "FUSEDOPT_OLD_FUNCTIONS=${old_functions}"
                            COMPILE_OPTIONS -std=c++17 SKIP_UNITY_BUILD_INCLUSION ON)
function(fusedopt_for_manylinux target)
  target_sources(${target} PRIVATE ${old_file})
  target_include_directories(${target} BEFORE PRIVATE cmake/glibc)
  target_link_options(${target} PRIVATE ${wrapped})
endfunction()

target_compile_definitions(fusedopt_core PUBLIC FUSEDOPT_SHARED)
fusedopt_for_manylinux(fusedopt_core)

# Empty libraries, whose sonames are all that an adapter keeps of them.
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/stubs/empty.cpp" "")
foreach(lib torch_python torch torch_cpu c10)
  add_library(stub_${lib} SHARED "${CMAKE_CURRENT_BINARY_DIR}/stubs/empty.cpp")
  set_target_properties(stub_${lib} PROPERTIES OUTPUT_NAME ${lib}
                        LIBRARY_OUTPUT_DIRECTORY "${CMAKE_CURRENT_BINARY_DIR}/stubs")
endforeach()

set(torch_version "")
foreach(folder ${FUSEDOPT_ADAPTERS})
  file(STRINGS ${folder}/torch/version.py line REGEX "^__version__")
  string(REGEX MATCH "[0-9]+\\.[0-9]+" minor "${line}")
  string(REPLACE . _ name "_C_torch${minor}")
  fusedopt_add_module(${name} ${folder}/torch ${minor})
  fusedopt_for_manylinux(${name})
  target_link_options(${name} PRIVATE -Wl,--no-as-needed -Wl,-rpath,$ORIGIN)
  foreach(lib torch_python torch torch_cpu c10)
    target_link_libraries(${name} PRIVATE stub_${lib})
  endforeach()
  install(TARGETS ${name} LIBRARY DESTINATION fusedopt/_adapters)
  list(APPEND torch_version ${minor})
endforeach()
list(JOIN torch_version ", " torch_version)
install(TARGETS fusedopt_core LIBRARY DESTINATION fusedopt/_adapters)
