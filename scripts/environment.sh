# Makes .venv with the pinned requirements, or reuses it. Sourced by the
# other scripts; leaves $PYTHON set. Set DPO_JAX_VENV to keep it elsewhere.
cd "$(dirname "${BASH_SOURCE[0]}")/.."
venv=${DPO_JAX_VENV:-.venv}
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
