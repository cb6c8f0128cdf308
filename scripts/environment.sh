# Makes .venv with the pinned requirements, or reuses it. Sourced by the other
# scripts: changes to the repository's root and sets $PYTHON. DPO_JAX_VENV names
# another folder for the environment.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${DPO_JAX_VENV:-.venv}
# The stamp is written last: an install that was interrupted starts again.
stamp=$venv/requirements.sha256
wanted=$(sha256sum requirements.txt | cut -d' ' -f1)
if [ "$(cat "$stamp" 2>/dev/null)" != "$wanted" ]; then
  base=${PYTHON:-python3}
  if ! "$base" -c 'import sys; sys.exit(sys.version_info < (3, 11))'; then
    echo "$("$base" --version 2>&1): too old; fix: PYTHON=python3.11 $0" >&2
    exit 2
  fi
  echo "Installing the pinned requirements into $venv (about a minute)"
  "$base" -m venv "$venv"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check \
    --requirement requirements.txt
  echo "$wanted" >"$stamp"
fi
PYTHON=$venv/bin/python
