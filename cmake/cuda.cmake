# The CUDA kernels, wherever there is an nvcc: they need no torch, and none of its CUDA.
#
# Sets `cuda` to what is built, or to why nothing is; the extension is complete without, too.
#
# nvcc is called by commands of our own. CMake's CUDA language links a program to try the compiler,
# which fails with the nvcc from PyPI (its libraries are in lib, nvcc looks in lib64), and it ends
# the configuration where nvcc doesn't take the host compiler.

function(fusedopt_find_cuda)
  set(cuda "" PARENT_SCOPE)
  if(FUSEDOPT_CUDA STREQUAL "0")
    set(cuda "none: FUSEDOPT_CUDA=0" PARENT_SCOPE)
    return()
  endif()
  if(FUSEDOPT_SANITIZE)
    set(cuda "none: the sanitizers check the kernels' bodies on the host" PARENT_SCOPE)
    return()
  endif()
  # PyPI's nvidia-cuda-nvcc lies beside torch's other packages.
  find_package(Python QUIET COMPONENTS Interpreter)
  file(GLOB wheels "${Python_SITELIB}/nvidia/cu*/bin" "${Python_SITELIB}/nvidia/cuda_nvcc/bin")
  find_program(FUSEDOPT_NVCC nvcc
               HINTS "$ENV{CUDA_HOME}/bin" "$ENV{CUDA_PATH}/bin"
               PATHS ${wheels} /usr/local/cuda/bin)
  if(NOT FUSEDOPT_NVCC)
    set(cuda "none: no nvcc was found" PARENT_SCOPE)
    return()
  endif()
  execute_process(COMMAND ${FUSEDOPT_NVCC} --version OUTPUT_VARIABLE text ERROR_QUIET)
  if(NOT text MATCHES "release ([0-9]+\\.[0-9]+)" OR CMAKE_MATCH_1 VERSION_LESS 12.1)
    # Older ones know no kernel arguments of more than 4 KB.
    set(cuda "none: ${FUSEDOPT_NVCC} is older than 12.1" PARENT_SCOPE)
    return()
  endif()
  set(cuda_version ${CMAKE_MATCH_1} PARENT_SCOPE)
  # The folder that nvcc itself works from: the one that was found may be a script or a link.
  execute_process(COMMAND ${FUSEDOPT_NVCC} --dryrun -c x.cu ERROR_VARIABLE text OUTPUT_QUIET)
  string(REGEX MATCH " TOP=([^\n]*)" text "${text}")
  set(top "${CMAKE_MATCH_1}")
  file(GLOB places "${top}/lib64" "${top}/lib" "${top}/targets/*/lib" "${top}/../cuda_runtime/lib")
  find_library(FUSEDOPT_CUDART libcudart_static.a HINTS ${places})
  if(NOT FUSEDOPT_CUDART)
    set(cuda "none: there is no libcudart_static.a with ${FUSEDOPT_NVCC}" PARENT_SCOPE)
    return()
  endif()
  # Not every nvcc takes every host compiler.
  set(probe "${CMAKE_CURRENT_BINARY_DIR}/probe.cu")
  file(WRITE ${probe} "#include <cstdint>\n__global__ void probe(uint64_t* p) { *p = 1; }\n")
  execute_process(COMMAND ${FUSEDOPT_NVCC} -std=c++20 -ccbin ${CMAKE_CXX_COMPILER}
                          -c ${probe} -o ${probe}.o
                  ERROR_VARIABLE error OUTPUT_QUIET RESULT_VARIABLE failed)
  if(failed)
    string(REGEX MATCH "[^\n]+" error "${error}")
    string(REGEX REPLACE "[\"\\]" "'" error "${error}")
    set(cuda "none: ${FUSEDOPT_NVCC} fails: ${error}" PARENT_SCOPE)
  endif()
endfunction()

fusedopt_find_cuda()
if(NOT cuda STREQUAL "")
  if(FUSEDOPT_CUDA STREQUAL "1")
    message(FATAL_ERROR "FUSEDOPT_CUDA=1 asks for CUDA kernels, but there are ${cuda}")
  endif()
  message(STATUS "CUDA kernels: ${cuda}")
  return()
endif()

set(architectures ${FUSEDOPT_CUDA_ARCHITECTURES})
if(NOT architectures)
  set(architectures 75 80 86 90)  # sm_89 runs sm_86's: ptxas makes the same code for both
  if(cuda_version VERSION_GREATER_EQUAL 12.8)
    list(APPEND architectures 100 120)
  endif()
endif()
# sm_86 and sm_89 are made from compute_80's PTX, which is theirs too: one pass instead of three.
set(ampere ${architectures})
list(FILTER ampere INCLUDE REGEX "^8[069]$")
set(gencode "")
foreach(architecture ${architectures})
  if(NOT (80 IN_LIST ampere AND architecture IN_LIST ampere))
    list(APPEND gencode -gencode arch=compute_${architecture},code=sm_${architecture})
  elseif(architecture EQUAL 80)
    list(TRANSFORM ampere PREPEND "sm_" OUTPUT_VARIABLE codes)
    list(JOIN codes "," codes)
    list(APPEND gencode -gencode "arch=compute_80,code=[${codes}]")
  endif()
endforeach()
list(GET architectures -1 newest)
list(APPEND gencode -gencode arch=compute_${newest},code=compute_${newest})  # for what comes
list(TRANSFORM architectures PREPEND "sm_" OUTPUT_VARIABLE names)
list(JOIN names " " names)
set(cuda "${cuda_version}, ${names}")
message(STATUS "CUDA kernels: ${cuda}")

# The same bits as on the CPU: nothing is fused, and division and root are IEEE's.
set(cuda_flags -std=c++20 -O3 -fmad=false -prec-div=true -prec-sqrt=true -ftz=false
    -ccbin ${CMAKE_CXX_COMPILER} -Xcompiler=-fPIC,-fvisibility=hidden,-ffp-contract=off
    -I${CMAKE_CURRENT_SOURCE_DIR}/csrc)
if(FUSEDOPT_ADAPTERS)
  list(APPEND cuda_flags -DFUSEDOPT_SHARED -I${CMAKE_CURRENT_SOURCE_DIR}/cmake/glibc)
endif()
if(cuda_version VERSION_GREATER_EQUAL 13.0)
  list(APPEND cuda_flags --compress-mode=size)  # 2 MB instead of 26, for no more time
endif()
list(JOIN cuda_flags "\n" text)
file(WRITE "${CMAKE_CURRENT_BINARY_DIR}/cuda/flags.txt" "${FUSEDOPT_NVCC}\n${text}\n")  # for tests

# ptxas' report of registers and spills goes to a file, which a test reads; all else is shown.
set(compile [["$@" >"$0" 2>&1; code=$?; grep -v -e "^ptxas info" -e "bytes stack frame" "$0"; exit $code]])
file(GLOB cuda_sources CONFIGURE_DEPENDS csrc/cuda/*.cu)
foreach(source ${cuda_sources})
  cmake_path(GET source STEM name)
  set(object "${CMAKE_CURRENT_BINARY_DIR}/cuda/${name}.o")
  add_custom_command(
    OUTPUT ${object}
    COMMAND sh -c "${compile}" ${object}.txt ${FUSEDOPT_NVCC} ${cuda_flags} ${gencode} -Xptxas=-v
            -MMD -MF ${object}.d -MT ${object} -c ${source} -o ${object}
    DEPENDS ${source} DEPFILE ${object}.d COMMENT "Building CUDA object ${name}.o" VERBATIM)
  target_sources(fusedopt_core PRIVATE ${object})
endforeach()
target_compile_definitions(fusedopt_core PUBLIC FUSEDOPT_WITH_CUDA)
# torch may have loaded another cudart: ours must neither be found by others nor give way to it.
set(scope PUBLIC)
if(FUSEDOPT_ADAPTERS)
  set(scope PRIVATE)
endif()
target_link_options(fusedopt_core ${scope} -Wl,--exclude-libs,libcudart_static.a)
target_link_libraries(fusedopt_core ${scope} ${FUSEDOPT_CUDART} ${CMAKE_DL_LIBS} rt)
