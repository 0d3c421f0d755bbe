# The Python extension: csrc/torch, compiled for a torch.

# find_package(Torch) would look for nvcc where torch has CUDA. Where torch is, and its version, are
# all that is needed, and reading them takes milliseconds where importing torch takes seconds. For
# the adapters of a wheel (adapters.cmake) torch needn't be there.
execute_process(
  COMMAND ${Python_EXECUTABLE} -c [[
import importlib.util, pathlib, runpy, sys
import pybind11
torch, version = "", ""
if sys.argv[1] == "":
    torch = pathlib.Path(importlib.util.find_spec("torch").origin).parent
    version = runpy.run_path(str(torch / "version.py"))["__version__"]
print(torch, version, pybind11.get_cmake_dir(), sep=";", end="")
]] "${FUSEDOPT_ADAPTERS}"
  OUTPUT_VARIABLE found ERROR_QUIET RESULT_VARIABLE failed)
if(failed)
  message(FATAL_ERROR "${Python_EXECUTABLE} finds no torch or no pybind11: install both for it, "
                      "or name another Python with -DPython_EXECUTABLE=...")
endif()
list(GET found 0 torch_dir)
list(GET found 1 torch_version)
list(GET found 2 pybind11_DIR)

set(PYBIND11_FINDPYTHON ON)
find_package(pybind11 CONFIG REQUIRED)
find_package(OpenMP COMPONENTS CXX)
file(GLOB torch_sources CONFIGURE_DEPENDS csrc/torch/*.cpp)

# Adds the module that the headers in a folder and the version describe.
function(fusedopt_add_module name torch_dir torch_version)
  # NO_EXTRAS: link-time optimisation would inline across the instruction sets' boundaries.
  pybind11_add_module(${name} MODULE NO_EXTRAS ${torch_sources})
  if(FUSEDOPT_UNITY)
    list(LENGTH torch_sources files)
    math(EXPR half "(${files} + 1) / 2")
    set_target_properties(${name} PROPERTIES UNITY_BUILD ON UNITY_BUILD_BATCH_SIZE ${half})
  endif()
  target_link_libraries(${name} PRIVATE fusedopt_core)
  # After pybind11's own, because torch's folder holds another copy of pybind11.
  target_include_directories(${name} SYSTEM PRIVATE
                             ${torch_dir}/include ${torch_dir}/include/torch/csrc/api/include)
  # at::parallel_for is a header: without OpenMP it compiles to a loop on the calling thread. The
  # runtime must be the one that torch brings, so GCC's is compiled for and not linked.
  if(CMAKE_CXX_COMPILER_ID STREQUAL "GNU")
    target_compile_options(${name} PRIVATE -fopenmp)
  elseif(OpenMP_CXX_FOUND)
    target_link_libraries(${name} PRIVATE OpenMP::OpenMP_CXX)
  else()
    message(WARNING "No OpenMP for ${CMAKE_CXX_COMPILER}: every step will run on one thread")
  endif()
  # Another torch is another compiler command, so everything is compiled anew for it; and the module
  # refuses to load beside another one.
  target_compile_definitions(${name} PRIVATE FUSEDOPT_TORCH_VERSION="${torch_version}")
  # torch's headers then include the operators that they call instead of all, as in torch's build.
  target_compile_definitions(${name} PRIVATE AT_PER_OPERATOR_HEADERS)
  if(FUSEDOPT_DICT_WATCH)
    target_compile_definitions(${name} PRIVATE FUSEDOPT_DICT_WATCH=1)
  endif()
endfunction()

if(FUSEDOPT_ADAPTERS)
  include(cmake/adapters.cmake)
else()
  fusedopt_add_module(_C ${torch_dir} ${torch_version})
  foreach(lib torch_python torch torch_cpu c10)
    target_link_libraries(_C PRIVATE ${torch_dir}/lib/lib${lib}.so)
  endforeach()
  install(TARGETS _C LIBRARY DESTINATION fusedopt)

  # Each file by itself, for the includes that the pieces of the unity build hide; only parsed, which
  # takes half as long. Not part of the build: CI runs it.
  add_library(includes OBJECT EXCLUDE_FROM_ALL ${torch_sources})
  target_include_directories(includes SYSTEM PRIVATE
                             ${torch_dir}/include ${torch_dir}/include/torch/csrc/api/include)
  target_compile_definitions(includes PRIVATE $<TARGET_PROPERTY:_C,COMPILE_DEFINITIONS>)
  target_compile_options(includes PRIVATE $<TARGET_PROPERTY:_C,COMPILE_OPTIONS> -fsyntax-only)
  target_link_libraries(includes PRIVATE fusedopt_core pybind11::module)

  if(FUSEDOPT_TESTS)
    pybind11_add_module(_stand_in MODULE NO_EXTRAS tests/cpp/stand_in.cpp)
    get_target_property(libraries _C LINK_LIBRARIES)
    target_link_libraries(_stand_in PRIVATE ${libraries})
    get_target_property(includes _C INCLUDE_DIRECTORIES)
    target_include_directories(_stand_in SYSTEM PRIVATE ${includes})
    target_compile_definitions(_stand_in PRIVATE AT_PER_OPERATOR_HEADERS)
  endif()
endif()

set(compiler "${CMAKE_CXX_COMPILER_ID} ${CMAKE_CXX_COMPILER_VERSION}")
file(CONFIGURE OUTPUT _build_info.py @ONLY CONTENT
[["""What this build of the extension was made from; written by CMake."""

VERSION = "@PROJECT_VERSION@"
TORCH_VERSION = "@torch_version@"
COMPILER = "@compiler@"
CUDA = "@cuda@"
]])
install(FILES "${CMAKE_CURRENT_BINARY_DIR}/_build_info.py" DESTINATION fusedopt)
