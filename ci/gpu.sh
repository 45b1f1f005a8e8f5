#!/usr/bin/env bash
# The checks that need a GPU, in two halves.
#
#   ci/gpu.sh bundle    with Rust, nvcc and Python: builds everything into gpu-bundle/
#   ci/gpu.sh run [tests|sanitizers|layers|networks|compare|compile|training ...]
#                       with a GPU: runs the bundle, without Rust
#
# A skipped test is a failure. Each step's log is in gpu-bundle/logs (or $LOGS); the run ends with a table of all steps.
# `layers` and `networks` are our benches; `compare` alternates our steps with PyTorch's, `compile` with
# torch.compile's, which need minutes to compile. SECONDS_A_STEP limits each step (540), FILTER selects the tests for
# the sanitizers ("ops::"), BENCH the rows of the benches (all), PEERS the workloads of the comparisons (compare.py's
# default), and TORCH_PYTHON is a Python with torch (python3).
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

MOST_BYTES=$((60 << 20))

# ---------------------------------------------------------------------------------------------------------- bundle

# Prints `kind name path` of every test and bench binary of the library, and of the program.
artifacts() {
  {
    cargo test --locked --release --workspace --no-run --message-format=json
    cargo bench --locked --features sim -p residuum --no-run --message-format=json
    cargo build --locked --release --workspace --message-format=json
  } | python3 -c '
import json, sys
seen = set()
for line in sys.stdin:
    try:
        message = json.loads(line)
    except ValueError:
        continue
    path, target = message.get("executable"), message.get("target", {})
    if not path or path in seen:
        continue
    seen.add(path)
    kind, name = target["kind"][0], target["name"]
    package = message.get("package_id", "")
    library = "residuum-cli" not in package and "/cli#" not in package
    if kind == "bench" and name in ("layers", "networks"):
        print("bench", name, path)
    elif library and message["profile"]["test"] and kind in ("lib", "test") and name != "mutants":
        print("test", "unit" if kind == "lib" else name, path)
    elif kind == "bin" and not message["profile"]["test"]:
        print("program", name, path)
'
}

# Packs $1/bin. Every binary holds all kernels; a dictionary larger than all binaries together stores them once.
pack() {
  tar -C "$1" -cf - bin | python3 -c '
import lzma, shutil, sys
filters = [{"id": lzma.FILTER_LZMA2, "preset": 3, "dict_size": 1 << 28}]
with lzma.open(sys.stdout.buffer, "wb", filters=filters) as packed:
    shutil.copyfileobj(sys.stdin.buffer, packed, 1 << 20)
' >"$1/bin.tar.xz"
  rm -r "$1/bin"
}

bundle() {
  local out=gpu-bundle kind name path
  rm -rf "$out"
  mkdir -p "$out/bin"
  artifacts >"$out/artifacts.txt"
  while read -r kind name path; do
    install -m 755 "$path" "$out/bin/$kind-$name"
    strip "$out/bin/$kind-$name"
  done <"$out/artifacts.txt"
  sed -i 's/ [^ ]*$//' "$out/artifacts.txt"
  for kind in test bench program; do
    grep -q "^$kind " "$out/artifacts.txt" || { echo "the build made no $kind" >&2; exit 1; }
  done
  # The tests read sources, goldens and data.
  git ls-files -z | xargs -0 cp --parents -t "$out"
  git describe --always --dirty --exclude='*' >"$out/commit.txt"
  if ! "$out/bin/program-residuum" doctor | tee "$out/built.txt" | grep -q '^ok kernels'; then
    echo "the build has no kernels: install nvcc, or use .ci/run's (RESIDUUM_NVCC)" >&2
    exit 1
  fi
  pack "$out"
  local bytes
  bytes=$(du -sb "$out" | cut -f1)
  echo "$out: $((bytes >> 20)) MiB, $(grep -c . "$out/artifacts.txt") programs"
  if ((bytes > MOST_BYTES)); then
    du -ab "$out" | sort -rn | head -n 20 >&2
    echo "$out is larger than $((MOST_BYTES >> 20)) MiB" >&2
    exit 1
  fi
}

# ------------------------------------------------------------------------------------------------------------- run

LIMIT="${SECONDS_A_STEP:-540}"
FILTER="${FILTER:-ops::}"
table=()
failed=0

# step NAME EXPECTED COMMAND...: runs COMMAND. EXPECTED is `pass`, or `find` if COMMAND must find a bug and fail.
step() {
  local name=$1 expected=$2 start=$SECONDS code=0 verdict detail log
  shift 2
  log="$LOGS/${name//[^a-zA-Z0-9_-]/_}.log"
  echo "== $name"
  timeout "$LIMIT" "$@" >"$log" 2>&1 || code=$?
  local summary='^test result:|ERROR SUMMARY|RACECHECK SUMMARY|time:.*\[|test_accuracy'
  detail=$({ grep -E "$summary" "$log" || true; } | tail -n 1 | cut -c1-100)
  if [[ $expected == pass && $code -eq 0 ]] || [[ $expected == find && $code -eq 97 ]]; then
    verdict=ok
  else
    verdict=FAILED failed=1
    detail="exit status $code${detail:+, $detail}"
    tail -n 25 "$log"
  fi
  table+=("$(printf '%-6s %-44s %5d s  %s' "$verdict" "$name" "$((SECONDS - start))" "$detail")")
}

binaries() {
  sed -n "s/^$1 //p" "$root/artifacts.txt"
}

run_tests() {
  local name
  for name in $(binaries test); do
    step "test $name" pass env RUST_BACKTRACE=1 "$root/bin/test-$name"
  done
  # The steps above are recorded with conditional graph nodes if the driver has them.
  step "test recorded steps without conditional nodes" pass env RESIDUUM_CONDITIONAL=0 "$root/bin/test-suite" captured::
}

# Finds the sanitizer in a CUDA toolkit or in Python's packages.
find_sanitizer() {
  local place packages
  packages=$(python3 -c 'import sysconfig; print(sysconfig.get_paths()["purelib"])' 2>/dev/null) || true
  for place in $(command -v compute-sanitizer || true) "${CUDA_HOME:-/nowhere}/bin/compute-sanitizer" \
    /usr/local/cuda*/bin/compute-sanitizer "$packages"/nvidia/*/bin/compute-sanitizer; do
    if [[ -x $place ]] && "$place" --version >/dev/null 2>&1; then
      echo "$place"
      return
    fi
  done
}

run_sanitizers() {
  local sanitizer tool
  sanitizer=$(find_sanitizer)
  if [[ -z $sanitizer ]]; then
    echo "compute-sanitizer is not here; it is part of the CUDA toolkit" >&2
    table+=("$(printf '%-6s %-44s' FAILED 'compute-sanitizer is missing')")
    failed=1
    return
  fi
  for tool in memcheck racecheck; do
    local run=("$sanitizer" --tool "$tool" --error-exitcode 97)
    [[ $tool == racecheck ]] && run+=(--racecheck-report all)
    step "$tool finds a planted bug" find env RESIDUUM_PLANT="$tool" "${run[@]}" \
      "$root/bin/test-suite" --exact planted::a_planted_bug --nocapture
    step "$tool on $FILTER" pass env RESIDUUM_ONLY=cuda "${run[@]}" "$root/bin/test-suite" "$FILTER" --test-threads=1
  done
}

# run_bench NAME: prints the rows for benches/RESULTS.md, or criterion's lines if there are none.
run_bench() {
  step "bench $1" pass "$root/bin/bench-$1" --bench --noplot ${BENCH:+"$BENCH"}
  echo "$1, $(date +%F), commit $RESIDUUM_COMMIT"
  grep -E '^\|' "$LOGS/bench_$1.log" || grep -E 'time: +\[|thrpt: +\[|^networks/|^skipped' "$LOGS/bench_$1.log" || true
}

# run_compare NAME WAYS LIMIT: alternates our steps with PyTorch's, or says that PyTorch is missing and measures ours.
# Each of PyTorch's ways has LIMIT seconds to get ready.
run_compare() {
  local peers=() python="${TORCH_PYTHON:-python3}"
  read -r -a peers <<<"${PEERS:-}"
  if ! command -v "$python" >/dev/null; then
    echo "$1: skipped, $python is not here"
    return
  fi
  step "$1" pass "$python" "$root/benches/peers/compare.py" --ours "$root/bin/bench-networks" --theirs "$2" \
    --seconds $((LIMIT > 120 ? LIMIT - 60 : LIMIT / 2)) --limit "$3" --logs "$LOGS/$1" "${peers[@]}"
  cat "$LOGS/$1.log"
}

run_training() {
  step "train on the GPU" pass "$root/bin/program-residuum" train --device cuda --out "$LOGS/run"
}

run() {
  root=$PWD
  [[ -f $root/artifacts.txt ]] || root=$PWD/gpu-bundle
  [[ -f $root/artifacts.txt ]] || { echo "there is no bundle; make one with: ci/gpu.sh bundle" >&2; exit 1; }
  cd "$root"
  [[ -d $root/bin ]] || python3 -m tarfile -e bin.tar.xz .
  LOGS="${LOGS:-$root/logs}"
  mkdir -p "$LOGS"
  export RESIDUUM_ROOT="$root" RESIDUUM_REQUIRE_GPU=1 RESIDUUM_COMMIT
  RESIDUUM_COMMIT=$(cat "$root/commit.txt")
  local sections=("$@") section
  ((${#sections[@]})) || sections=(tests sanitizers layers networks compare compile training)
  step "doctor" pass "$root/bin/program-residuum" doctor
  cat "$LOGS/doctor.log"
  for section in "${sections[@]}"; do
    case $section in
      tests | sanitizers | training) "run_$section" ;;
      layers | networks) run_bench "$section" ;;
      compare) run_compare compare eager,graph 120 ;;
      compile) run_compare compile compile 420 ;;
      *) echo "unknown section $section: see ci/gpu.sh" >&2; exit 2 ;;
    esac
  done
  echo
  printf '%s\n' "${table[@]}"
  exit "$failed"
}

case "${1:-}" in
  bundle) bundle ;;
  run) shift; run "$@" ;;
  *) sed -n '2,15s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
