# make train | test | bench | build | lint | format | sanitize | sanitize-python | test-machines |
#      gpu-check | wheel | wheel-test | sdist | versions | clean
#
# Each needs only Python 3.10+, a C++ compiler and make: it creates .venv, installs torch and the
# tools there, and builds fusedopt, as far as that isn't done yet.
#
#   make test PYTHON=python3.12   makes .venv with another Python
#   make test CXX=clang++         builds with another compiler (after make clean)
#   make test VENV=               uses $(PYTHON)'s own environment, which must have torch >= 2.11
#   make wheel PYTHON=python3.12  makes a wheel for another Python

PYTHON = python3
VENV = .venv
TORCH = torch==2.13.0
# Two workers with one OpenMP thread each: see `test`.
WORKERS = 2
ARGS =
# The torches that `make wheel` builds adapters for: one version of each minor one.
ADAPTERS = 2.11.0 2.12.0 2.13.0 2.14.1

ifeq ($(VENV),)
  PY := $(PYTHON)
  BIN := $(shell $(PYTHON) -c "import sysconfig; print(sysconfig.get_path('scripts'))")
  WANTED :=
else
  PY := $(abspath $(VENV))/bin/python
  BIN := $(abspath $(VENV))/bin
  WANTED := $(TORCH)
endif
OUTER_PATH := $(PATH)
export PATH := $(BIN):$(PATH)

# Python compiles what is imported when it is first imported: a small part of these packages.
PIP = $(PY) -m pip install --disable-pip-version-check --no-compile
# A list of pyproject.toml, which must stand on one line: each entry in its quotes.
listed = $(shell sed -n 's/^$1 = \[\(.*\)\]/\1/p' pyproject.toml | tr ',' ' ')
TOOLS := $(call listed,requires) $(call listed,dev)
LIBRARIES := $(call listed,bench) $(call listed,train) $(call listed,test)
FOR_TESTS := $(call listed,works-with) $(call listed,types)
# Folders too: their time changes when a file comes or goes.
SOURCES := $(shell find csrc cmake) CMakeLists.txt setup.py pyproject.toml
SUBMAKE = $(MAKE)# make -n would run a recipe that names MAKE itself
CXX_FILES = $$(find csrc tests/cpp -name '*.h' -o -name '*.cpp' -o -name '*.inl' -o -name '*.cu*')

# All are touched last, so that what was interrupted is done again.
TOOLED := $(or $(VENV),build)/tools
INSTALLED := $(or $(VENV),build)/libraries
BUILT := build/built-$(subst /,_,$(VENV))
OTHERS := $(or $(VENV),build)/others
ifeq ($(VENV),)
.PHONY: $(TOOLED) $(INSTALLED) $(BUILT) $(OTHERS)
endif

.PHONY: train test bench build lint format sanitize sanitize-python test-machines clean cpp-test \
        gpu-check wheel wheel-test sdist versions
build: $(BUILT)

$(TOOLED): pyproject.toml Makefile
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || { \
	  echo 'fusedopt needs Python 3.10 or newer: name one with make PYTHON=...' >&2; exit 1; }
	@$(PY) -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv $(VENV) || { \
	  echo '$(PYTHON) makes no virtual environment: install python3-venv.' >&2; exit 1; }
	$(PIP) $(TOOLS)
	@mkdir -p $(@D) && touch $@

$(INSTALLED): $(TOOLED) pyproject.toml
	$(PIP) $(WANTED) $(LIBRARIES)
	@mkdir -p $(@D) && touch $@

$(BUILT): $(INSTALLED) $(SOURCES)
	@echo 'Building fusedopt: a few minutes the first time.'
	$(PIP) --quiet --no-build-isolation --editable '.[bench,train,test,dev]'
	@mkdir -p $(@D) && touch $@

# The libraries and type checkers that fusedopt is tried with: only for the tests. torch is named so
# that it stays.
$(OTHERS): $(INSTALLED) pyproject.toml
	$(PIP) --quiet $(WANTED) $(FOR_TESTS)
	@mkdir -p $(@D) && touch $@

train: build
	$(PY) -m fusedopt.train $(ARGS)

bench: build
	$(PY) -m benchmarks.step --json build/bench.json --afresh --chart build/bench.png $(ARGS)
	$(if $(ARGS),,$(PY) -m benchmarks.phase --workload mlp 1000x64 resnet50 --seconds 5)

# pip, which has one thread, installs the libraries while the sanitizers' build compiles without.
test:
	$(SUBMAKE) -j2 sanitize $(OTHERS)
	$(SUBMAKE) cpp-test
	OMP_NUM_THREADS=1 $(PY) -m pytest -n $(WORKERS) tests $(ARGS)

cpp-test: build
	cmake -S . -B build/release -DFUSEDOPT_TESTS=ON >build/configure.log
	cmake --build build/release --target all includes
	ctest --test-dir build/release --output-on-failure --no-tests=error

sanitize: $(TOOLED)
	@mkdir -p build
	cmake -S . -B build/sanitize -G Ninja -DFUSEDOPT_EXTENSION=OFF -DFUSEDOPT_TESTS=ON \
	  -DFUSEDOPT_SANITIZE=ON >build/configure.log
	env -u MAKEFLAGS cmake --build build/sanitize # ninja can't use the jobserver of `make -j`
	ctest --test-dir build/sanitize --output-on-failure --no-tests=error

# The extension under both sanitizers, in programs that are hostile but legal; then the stress test.
# Without Python's own allocator, of which the sanitizer knows nothing.
HOSTILE := $(addprefix tests/test_,$(addsuffix .py,threads dicts reentry overrides users_code users_tensors \
  shared_memory memory numbers edits unchanged robustness errors odd_tensors hooks layouts fallback \
  fallback_rounds fallback_gradients collections borrowed amp \
  clip clip_lists clip_objects max_grad_norm swa_utils swa_utils_torchs swa_utils_objects zero_grad))
SANITIZED = LD_PRELOAD="$$($(CXX) -print-file-name=libasan.so) $$($(CXX) -print-file-name=libstdc++.so)" \
  ASAN_OPTIONS=detect_leaks=0:verify_asan_link_order=0 PYTHONMALLOC=malloc OMP_NUM_THREADS=1 \
  PYTHONPATH=$(abspath build/asan/root)
sanitize-python: $(INSTALLED)
	cmake -S . -B build/asan -G Ninja -DFUSEDOPT_SANITIZE=ON -DFUSEDOPT_CUDA=0 \
	  -DPython_EXECUTABLE=$(PY) >build/configure.log
	env -u MAKEFLAGS cmake --build build/asan
	rm -rf build/asan/root && mkdir -p build/asan/root && cp -r fusedopt build/asan/root
	rm -f build/asan/root/fusedopt/_C* && cmake --install build/asan --prefix build/asan/root
	$(SANITIZED) $(BIN)/pytest $(HOSTILE) $(ARGS)
	$(SANITIZED) $(PY) tests/stress.py --seconds 120

# The Python tests with the kernels that torch, oneDNN and fusedopt choose on other processors.
MACHINES = ATEN_CPU_CAPABILITY=default ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=SSE41 \
  ONEDNN_MAX_CPU_ISA=AVX2 FUSEDOPT_CPU_ISA=baseline OMP_NUM_THREADS=2
test-machines: build $(OTHERS)
	failed=; for machine in $(MACHINES); do \
	  echo "$$machine"; \
	  env OMP_NUM_THREADS=1 $$machine $(PY) -m pytest -n $(WORKERS) tests $(ARGS) \
	    || failed="$$failed $$machine"; \
	done; test -z "$$failed" || { echo "failed:$$failed" >&2; exit 1; }

# With the torch that is there: $(PYTHON)'s, if it sees a GPU, or else .venv's, which is made first
# if there is a GPU at all.
SEES_GPU = -c 'import sys, torch; sys.exit(not torch.cuda.is_available())' 2>/dev/null
gpu-check:
	@if PATH='$(OUTER_PATH)' $(PYTHON) $(SEES_GPU); then \
	  PATH='$(OUTER_PATH)' $(PYTHON) tests/gpu_check.py $(ARGS); \
	elif $(PY) $(SEES_GPU); then \
	  $(PY) tests/gpu_check.py $(ARGS); \
	elif nvidia-smi -L 2>/dev/null | grep -q GPU; then \
	  $(SUBMAKE) $(INSTALLED) && $(PY) tests/gpu_check.py $(ARGS); \
	else \
	  echo 'gpu-check: no GPU: neither torch nor nvidia-smi finds one. Nothing was done.' >&2; \
	  exit 2; \
	fi

lint: $(TOOLED)
	ruff check .
	ruff format --check .
	clang-format --dry-run -Werror $(CXX_FILES)

format: $(TOOLED)
	ruff check --fix .
	ruff format .
	clang-format -i $(CXX_FILES)

# Wheels are made in an environment of their own, which needs no torch, one for each Python.
WHEEL_ENV := build/wheel
ifneq ($(filter wheel wheel-test sdist,$(MAKECMDGOALS)),) # Python is asked for its version
  WHEEL_ENV := build/wheel-$(shell $(PYTHON) -c 'import sys; print(*sys.version_info[:2], sep=".")')
endif
WHEEL_PY := $(WHEEL_ENV)/bin/python
WHEEL_TOOLS := $(WHEEL_ENV)/tools
# torch's libraries are loaded before the wheel's: they are named in it, and not put into it.
EXCLUDED = $(patsubst %,--exclude %,libtorch_python.so libtorch.so libtorch_cpu.so libc10.so)

$(WHEEL_TOOLS): pyproject.toml Makefile
	$(PYTHON) -m venv $(WHEEL_ENV)
	$(WHEEL_PY) -m pip install --disable-pip-version-check --quiet $(call listed,requires) \
	  $(call listed,wheel)
	@touch $@

wheel: $(WHEEL_TOOLS)
	rm -rf build/lib.* build/bdist.* $(WHEEL_ENV)/raw && mkdir -p dist
	adapters="$$($(WHEEL_PY) cmake/torch_headers.py $(ADAPTERS))" && \
	  FUSEDOPT_ADAPTERS="$$adapters" $(WHEEL_PY) -m build --wheel --no-isolation \
	    --outdir $(WHEEL_ENV)/raw . >$(WHEEL_ENV)/log || { tail -40 $(WHEEL_ENV)/log >&2; exit 1; }
	PATH="$(abspath $(WHEEL_ENV))/bin:$$PATH" $(WHEEL_PY) -m auditwheel repair $(EXCLUDED) \
	  --plat manylinux_2_28_$$(uname -m) --wheel-dir dist $(WHEEL_ENV)/raw/*.whl

# The wheel for .venv's Python.
wheel-test: $(INSTALLED)
	$(SUBMAKE) wheel PYTHON=$(PY)
	$(PY) -m pytest tests/test_wheel.py $(ARGS)

sdist: $(WHEEL_TOOLS)
	$(WHEEL_PY) -m build --sdist --no-isolation --outdir dist .

# What wheels in dist do with other Pythons and torches; gigabytes of torch are fetched for each.
versions: $(INSTALLED)
	$(PY) -m benchmarks.versions --json benchmarks/results/versions.json $(ARGS)

# Leaves .venv, which takes longest to make; the next target builds into it again.
clean:
	rm -rf build dist fusedopt.egg-info fusedopt/_C.*.so fusedopt/_adapters fusedopt/_build_info.py
