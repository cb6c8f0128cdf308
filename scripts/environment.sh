# Makes an environment with pinned requirements, or reuses it. Sourced by the
# other scripts: changes to the repository's root and sets $PYTHON. The default
# is .venv with requirements.txt; docs/environments.md explains the others:
#   DPO_JAX_PYTHON=3.12  .venv-py312 with requirements-py312.txt
#   DPO_JAX_JAX=0.11.2   that jax in place of the pinned one
#   DPO_JAX_GPU=1        requirements-gpu.txt: CUDA and kernels as well
#   DPO_JAX_VENV=FOLDER  another folder for the environment
cd "$(dirname "${BASH_SOURCE[0]}")/.."
wanted_python=${DPO_JAX_PYTHON:-3.11}
case $wanted_python in
  3.11) lock=requirements.txt venv=.venv candidates=("${PYTHON:-python3}") ;;
  3.12 | 3.13)
    lock=requirements-py312.txt venv=.venv-py${wanted_python/./}
    candidates=("${PYTHON:-python3}" "python$wanted_python"
      "$HOME/.pyenv/versions/$wanted_python".*/bin/python)
    ;;
  *)
    echo "Python $wanted_python: no pins; fix: name 3.11, 3.12 or 3.13" >&2
    exit 2
    ;;
esac
if [ -n "${DPO_JAX_GPU:-}" ]; then
  lock=requirements-gpu.txt venv=$venv-gpu
fi
pins=$(cat "$lock")
if [ -n "${DPO_JAX_JAX:-}" ]; then
  pins=$(sed -E "s/^(jax|jaxlib)==[^ ]+/\1==$DPO_JAX_JAX/" "$lock")
  venv=$venv-jax$DPO_JAX_JAX
fi
venv=${DPO_JAX_VENV:-$venv}
# The stamp is written last: an install that was interrupted starts again.
stamp=$venv/requirements.sha256
wanted=$(echo "$pins" | sha256sum | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  base=
  for candidate in "${candidates[@]}"; do
    # The floor takes any later Python too; the others exactly their own.
    if "$candidate" -c "import sys
have, want = sys.version_info[:2], ($(echo "$wanted_python" | tr . ,))
sys.exit(not (have == want or have > want == (3, 11)))" 2>/dev/null; then
      base=$candidate
      break
    fi
  done
  if [ -z "$base" ]; then
    echo "No Python $wanted_python; fix: PYTHON=python$wanted_python $0" >&2
    exit 2
  fi
  echo "Installing $lock into $venv (minutes)"
  "$base" -m venv "$venv"
  echo "$pins" >"$venv/requirements.txt"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement "$venv/requirements.txt"
  echo "$wanted" >"$stamp"
fi
PYTHON=$venv/bin/python
