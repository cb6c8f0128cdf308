# Sourced by launch_*.sh: refusals, dry runs, and the code that is sent away.
# Sets $root, the repository's, and $jax, the pinned version.
#   $dry          not empty: commands are printed and nothing is done
#   $uncommitted  not empty: changes that no commit holds are sent too
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd) || exit 2
dry='' uncommitted=${DPO_JAX_UNCOMMITTED:-}
jax=$(sed -nE 's/^jax==([^ ;]+).*/\1/p' "$root/requirements.txt")

refuse() { # PROBLEM FIX
  echo "$1; fix: $2" >&2
  exit 2
}

need() { # TOOL FIX: a dry run needs none
  [ -n "$dry" ] || command -v "$1" >/dev/null || refuse "$1 is not installed" "$2"
}

check_name() { # WHAT: refuses a $name that Google Cloud does not take for it
  [[ $name =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] ||
    refuse "--name='$name' is not a name for $1" 'use a-z, 0-9 and -'
}

committed() { # refuses files that differ from the commit
  local changed
  # Without git there is nothing to compare with.
  changed=$(git -C "$root" status --porcelain 2>/dev/null | head -n 1)
  if [ -n "$changed" ] && [ -z "$uncommitted" ]; then
    refuse "uncommitted changes (${changed:3})" \
      'commit them, or give --uncommitted'
  fi
}

tree() { # prints the git tree of the commit, or of all files that git knows of
  if [ -z "$uncommitted" ]; then
    git -C "$root" rev-parse 'HEAD^{tree}'
    return
  fi
  local index
  index=$(mktemp -d) || return
  GIT_INDEX_FILE=$index/index git -C "$root" add --all &&
    GIT_INDEX_FILE=$index/index git -C "$root" write-tree
  rm -r "$index"
}

words() { # prints a command as a shell reads it
  local text
  printf -v text '%q ' "$@"
  echo "${text% }"
}

run() { # COMMAND: runs it, or prints it in a dry run
  if [ -n "$dry" ]; then words "$@"; else "$@"; fi
}

extra() { # TYPE: prints the requirement of jax for a device
  case $1 in
    v[4-9]* | tpu*) echo "jax[tpu]==$jax" ;;
    *) echo "jax[cuda13]==$jax" ;;
  esac
}
