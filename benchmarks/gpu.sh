#!/usr/bin/env bash
# Measures everything that takes a GPU, one section after the other, a few minutes each; what is there already is left out.
#
#     bash benchmarks/gpu.sh [SECTION ...] [--again] [--rounds=N]
#     bash benchmarks/gpu.sh --device=cpu --small      # the same code without a GPU, in two minutes
#
# PYTHON names the interpreter. A section that fails does not stop the others; the exit status is then 1.
set -u
cd "$(dirname "$0")/.." || exit 1

sections=()
options=()
for argument in "$@"; do
    case "$argument" in
        -*) options+=("$argument") ;;
        *) sections+=("$argument") ;;
    esac
done
if [ ${#sections[@]} -eq 0 ]; then
    sections=(bert-base scoring llama-7b bert-large llama-1b)
fi

failed=()
for section in "${sections[@]}"; do
    echo "== $section"
    PYTHONPATH="$PWD${PYTHONPATH:+:$PYTHONPATH}" \
        "${PYTHON:-python3}" benchmarks/gpu.py "$section" ${options[@]+"${options[@]}"} || failed+=("$section")
done
if [ ${#failed[@]} -gt 0 ]; then
    echo "failed: ${failed[*]}" >&2
    exit 1
fi
