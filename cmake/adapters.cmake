# What a wheel holds: the core as one shared library, and for each torch a thin adapter beside it,
# the extension module without the core. Python chooses the adapter (fusedopt/_load.py).
#
# FUSEDOPT_ADAPTERS lists folders that hold torch/include and torch/version.py, as
# cmake/torch_headers.py makes them. Nothing of torch is linked: an adapter names torch's libraries
# by their sonames, and they are loaded before it.

# Lets a library that is linked to a newer glibc and libstdc++ load from manylinux_2_28 on. More
# functions that glibc has moved may be named behind the target. There they are found in libpthread,
# libdl and librt, which torch's libraries need, too, and so are loaded.
set(old_file cmake/glibc/old.cpp)
file(STRINGS ${old_file} lines REGEX "WRAP\\(_Z")
string(REGEX MATCHALL "_Z[A-Za-z0-9_]+" newer "${lines}")
function(fusedopt_for_manylinux target)
  set(moved pthread_mutex_trylock ${ARGN})
  set(definition "")
  foreach(name ${moved})
    set(since FIRST)
    if(name STREQUAL "dlmopen")
      set(since DLMOPEN)
    endif()
    string(APPEND definition "OLD(\"${name}\", ${since}) ")
  endforeach()
  add_library(${target}_old OBJECT ${old_file})
  target_compile_definitions(${target}_old PRIVATE "FUSEDOPT_OLD_FUNCTIONS=${definition}")
  set_target_properties(${target}_old PROPERTIES CXX_STANDARD 17)
  target_link_libraries(${target} PRIVATE ${target}_old)
  target_include_directories(${target} BEFORE PRIVATE cmake/glibc)
  set(wrapped ${newer} ${moved})
  list(TRANSFORM wrapped PREPEND "-Wl,--wrap=")
  target_link_options(${target} PRIVATE ${wrapped})
endfunction()

set(moved "")
if(NOT cuda MATCHES "^none")  # what the static cudart of CUDA 12 or 13 calls
  set(moved dlclose dlerror dlmopen dlopen dlsym dlvsym
      pthread_attr_destroy pthread_attr_init pthread_attr_setstacksize pthread_condattr_setpshared
      pthread_create pthread_detach pthread_getspecific pthread_join pthread_key_create
      pthread_key_delete pthread_kill pthread_mutexattr_destroy pthread_mutexattr_init
      pthread_mutexattr_setpshared pthread_mutexattr_settype pthread_once pthread_rwlock_destroy
      pthread_rwlock_init pthread_rwlock_rdlock pthread_rwlock_timedrdlock
      pthread_rwlock_timedwrlock pthread_rwlock_tryrdlock pthread_rwlock_trywrlock
      pthread_rwlock_unlock pthread_rwlock_wrlock pthread_rwlockattr_destroy
      pthread_rwlockattr_init pthread_rwlockattr_setpshared pthread_setspecific
      pthread_spin_destroy pthread_spin_init pthread_spin_lock pthread_spin_trylock
      pthread_spin_unlock sem_close sem_destroy sem_getvalue sem_init sem_open sem_post
      sem_timedwait sem_trywait sem_unlink sem_wait shm_open shm_unlink)
endif()
target_compile_definitions(fusedopt_core PUBLIC FUSEDOPT_SHARED)
fusedopt_for_manylinux(fusedopt_core ${moved})

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
