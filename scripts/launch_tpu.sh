#!/bin/bash
# scripts/launch_tpu.sh --name=NAME --type=v5e-16 --zone=ZONE \
#   --bucket=gs://BUCKET [--project=P] [--runtime=R] [--spot] [--dry-run] \
#   [--uncommitted] -- ARGS
# asks Google Cloud for a TPU as a queued resource. Each of its hosts runs
# `python -m dpo_jax.main ARGS`, as one run, at every start of the machine: so
# also after maintenance. systemd starts it again unless it ended well, or with
# exit code 1 or 2, which the same command would only repeat. The code of this
# commit goes to BUCKET/launch/NAME.
#   scripts/launch_tpu.sh --delete --name=NAME --zone=ZONE --bucket=gs://BUCKET
# deletes the TPU and what is in BUCKET/launch/NAME, if it was made by the first
# command. Nothing else in the bucket is touched.
set -u
source "$(dirname "$0")/launch_common.sh"
usage='see the head of scripts/launch_tpu.sh'
name='' zone='' type='' bucket='' runtime='' delete='' more=() args=()
while [ $# -gt 0 ]; do
  case $1 in
    --) shift && args=("$@") && break ;;
    --dry-run) dry=1 ;;
    --uncommitted) uncommitted=1 ;;
    --delete) delete=1 ;;
    --name=*) name=${1#*=} ;;
    --zone=*) zone=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --bucket=*) bucket=${1#*=} ;;
    --runtime=*) runtime=${1#*=} ;;
    --project=* | --spot) more+=("$1") ;;
    *) refuse "$1: not a flag of this script" "$usage" ;;
  esac
  shift
done
check_name 'a TPU'
[ -n "$zone" ] || refuse '--zone is missing' "$usage"
[[ $bucket == gs://?* ]] ||
  refuse "--bucket='$bucket' is not a bucket" 'give gs://BUCKET'
need gcloud 'install the Google Cloud SDK, then gcloud auth login'

project=()
for flag in "${more[@]}"; do
  [[ $flag == --project=* ]] && project=("$flag")
done
place=${bucket%/}/launch/$name
code=$place/code.tar.gz
# Written last, so that it names only what was made here.
made=$place/made
record="$name $zone ${project[*]}"
queued=(gcloud compute tpus queued-resources)
here=("--zone=$zone" "${project[@]}")

if [ -n "$delete" ]; then
  if [ -z "$dry" ]; then
    [ "$(gcloud storage cat "$made" 2>/dev/null)" = "$record" ] ||
      refuse "$name in $zone was not launched from here ($made does not say so)" \
        'name it as it was launched'
  fi
  run "${queued[@]}" delete "$name" "${here[@]}" --force --quiet || exit
  run gcloud storage rm "$code" "$made"
  exit
fi

type=${type/#v5e-/v5litepod-}
case $runtime$type in
  v4-*) runtime=tpu-ubuntu2204-base ;;
  v5litepod-*) runtime=v2-alpha-tpuv5-lite ;;
  v5p-*) runtime=v2-alpha-tpuv5 ;;
  v6e-*) runtime=v2-alpha-tpuv6e ;;
  *) [ -n "$runtime" ] && [ -n "$type" ] ||
    refuse "--type='$type' is not known" 'use v4-N, v5e-N, v5p-N or v6e-N, or give --runtime' ;;
esac
[ ${#args[@]} -gt 0 ] || refuse '-- ARGS is missing' "$usage"
for arg in "${args[@]}"; do
  [[ $arg == --workdir=* && $arg != --workdir=gs://?* ]] &&
    echo "note: $arg is on the disk of each host: --workdir=gs://... is what all see" >&2
done
committed
if [ -z "$dry" ] && gcloud storage cat "$made" >/dev/null 2>&1; then
  refuse "$name was launched already ($made)" 'take another --name, or --delete it'
fi

scratch=$(mktemp -d) || exit 2
trap 'rm -r "$scratch"' EXIT
{
  cat <<HEAD
#!/bin/bash
# Written by scripts/launch_tpu.sh: runs at every start of the machine.
set -u
home=\${DPO_JAX_HOME:-/opt/dpo_jax}
mkdir -p "\$home" && cd "\$home" || exit 1
cat >run.sh <<'RUN'
#!/bin/bash
set -eu
cd "\$(dirname "\$0")"
if [ ! -e installed ]; then
  rm -rf code venv && mkdir code
  gcloud storage cat $(words "$code") | tar --extract --gzip --directory=code
  python3 -m pip install --quiet uv
  python3 -m uv venv --quiet --python=3.11 venv
  python3 -m uv pip install --quiet --python=venv/bin/python \\
    --requirement=code/requirements.txt $(words "$(extra "$type")") gcsfs
  touch installed
fi
cd code
exec ../venv/bin/python -m dpo_jax.main $(words "${args[@]}")
RUN
HEAD
  cat <<'TAIL'
chmod +x run.sh
systemctl reset-failed dpo_jax 2>/dev/null
# Five minutes to save what was trained, when the machine goes down.
systemd-run --unit=dpo_jax --setenv=HOME=/root --setenv=PYTHONUNBUFFERED=1 \
  --property=Restart=on-failure --property=RestartSec=30 \
  --property='RestartPreventExitStatus=1 2' --property=TimeoutStopSec=300 \
  "$home/run.sh"
TAIL
} >"$scratch/startup.sh"

create=("${queued[@]}" create "$name" "--node-id=$name" "${here[@]}")
create+=("--accelerator-type=$type" "--runtime-version=$runtime")
create+=(--scopes=https://www.googleapis.com/auth/cloud-platform)
[[ " ${more[*]} " == *' --spot '* ]] && create+=(--spot)
create+=("--metadata-from-file=startup-script=$scratch/startup.sh")
if [ -n "$dry" ]; then
  echo "git archive $(tree) | gzip | gcloud storage cp - $(words "$code")"
  words "${create[@]}"
  echo "echo $(words "$record") | gcloud storage cp - $(words "$made")"
  sed 's/^/startup.sh: /' "$scratch/startup.sh"
  exit
fi
set -o pipefail
git -C "$root" archive --format=tar.gz "$(tree)" | gcloud storage cp - "$code" || exit
if ! "${create[@]}"; then
  gcloud storage rm "$code"
  exit 1
fi
echo "$record" | gcloud storage cp - "$made" || exit
echo "$name is asked for; its log, once it is there:"
words gcloud compute tpus tpu-vm ssh "$name" "${here[@]}" --worker=0 \
  --command='journalctl --unit=dpo_jax --follow'
echo 'It costs until it is deleted:'
words scripts/launch_tpu.sh --delete "--name=$name" "${here[@]}" \
  "--bucket=$bucket"
