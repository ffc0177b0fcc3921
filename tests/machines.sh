#!/usr/bin/env bash
# The tests that another machine may see differently, as that machine: `make test-machines`, or
#   tests/machines.sh [native|avx2|sse41|threads|oldest ...]
# TESTS are the paths, by default all that compute; `reference` stands for the comparisons with published values.
set -uo pipefail
cd "$(dirname "$0")/.."
PYTHON=${PYTHON:-.venv/bin/python}
JOBS=${TEST_JOBS:-2}
OLDEST=.venv-oldest
COMPUTE="tests/models tests/layers tests/metrics tests/objectives tests/interop tests/callbacks tests/figures
  tests/test_probes.py tests/test_sampling.py tests/test_protocols.py tests/test_resume.py tests/test_overfit.py
  tests/test_evaluation_ranks.py tests/test_ranks.py"
TESTS=${TESTS:-$COMPUTE}
[ "$TESTS" = reference ] && TESTS=$(ls tests/models/test_*_reference.py tests/models/test_published_*.py)

tests() { # NAME VARIABLE=VALUE ...
  local name=$1 start=$SECONDS
  shift
  echo "== $name"
  # shellcheck disable=SC2086 # several paths
  env OMP_NUM_THREADS=1 "$@" "$PYTHON" -m pytest -n "$JOBS" --dist loadfile -q $TESTS || failed="$failed $name"
  echo "== $name: $((SECONDS - start)) s"
}

# What a run needs is held at the lower bounds of pyproject.toml; what only tests need is as new as fits.
LOWEST='
import re, tomllib
project = tomllib.load(open("pyproject.toml", "rb"))["project"]
extras = project["optional-dependencies"]
for text in (*project["dependencies"], *extras["tensorboard"], *extras["hdf5"], *extras["dashboard"]):
    name, version = re.match(r"([\w.-]+)(?:\[\w+\])?>=([\d.]+)", text).groups()
    print(f"{name}=={version}" + (".*" if version.count(".") < 2 else ""))
'

make_oldest() {
  [ -e "$OLDEST/installed" ] && [ "$OLDEST/installed" -nt pyproject.toml ] && return
  "$PYTHON" -m venv --clear "$OLDEST" || return
  "$PYTHON" -c "$LOWEST" >"$OLDEST/constraints.txt" || return
  "$OLDEST/bin/python" -m pip install --quiet --constraint "$OLDEST/constraints.txt" --editable '.[dev]' || return
  touch "$OLDEST/installed"
}

failed=
for machine in "${@:-native avx2 sse41 threads oldest}"; do
  for one in $machine; do
    case $one in
      native) tests native ;;
      avx2) tests avx2 ONEDNN_MAX_CPU_ISA=AVX2 ATEN_CPU_CAPABILITY=avx2 ;;
      sse41) tests sse41 ONEDNN_MAX_CPU_ISA=SSE41 ATEN_CPU_CAPABILITY=default ;;
      threads) JOBS=1 tests threads OMP_NUM_THREADS=2 ;;
      oldest) if make_oldest; then PYTHON=$OLDEST/bin/python tests oldest; else failed="$failed oldest"; fi ;;
      *) echo "unknown machine '$one': native, avx2, sse41, threads or oldest" >&2; exit 2 ;;
    esac
  done
done
[ -z "$failed" ] || { echo "failed on:$failed" >&2; exit 1; }
