#!/bin/bash
# scripts/launch_gke.sh --name=NAME --type=v5litepod-16 [--image=IMAGE] [--xpk] \
#   [--dry-run] [--uncommitted] [FLAGS OF THE TOOL] -- ARGS
# runs `python -m dpo_jax.main ARGS` on a GKE cluster, by `gcluster job submit`
# of Google's Cluster Toolkit, or by `xpk workload create` with --xpk. Flags that
# are not listed here go to that tool: --cluster, --project, --location (--zone
# for xpk), --num-slices and so on.
# Without --image, which has to hold the code and its environment, the code of
# this commit is put into /app of python:3.11 and its requirements are installed
# when a container starts; gcluster then needs $GCLUSTER_IMAGE_REPO, xpk docker.
# The job starts again where it was stopped (exit 143) or a host was lost (3,
# 134). Nothing is deleted but this script's own temporary folder.
set -u
source "$(dirname "$0")/launch_common.sh"
usage='see the head of scripts/launch_gke.sh'
name='' type='' image='' tool=gcluster more=() args=()
while [ $# -gt 0 ]; do
  case $1 in
    --) shift && args=("$@") && break ;;
    --dry-run) dry=1 ;;
    --uncommitted) uncommitted=1 ;;
    --xpk) tool=xpk ;;
    --name=*) name=${1#*=} ;;
    --type=*) type=${1#*=} ;;
    --image=*) image=${1#*=} ;;
    *) more+=("$1") ;;
  esac
  shift
done
check_name 'a job'
[ -n "$type" ] || refuse '--type is missing' "$usage"
[ ${#args[@]} -gt 0 ] || refuse '-- ARGS is missing' "$usage"
type=${type/#v5e-/v5litepod-}
need "$tool" "$([ $tool = xpk ] && echo pip install xpk ||
  echo 'install the Cluster Toolkit')"
committed

command="exec python -m dpo_jax.main $(words "${args[@]}")"
scratch=''
if [ -z "$image" ]; then
  scratch=$(mktemp -d) || exit 2
  trap 'rm -r "$scratch"' EXIT
  mkdir "$scratch/app"
  # gcluster copies the folder to the root of the image, xpk into /app.
  [ -n "$dry" ] || git -C "$root" archive "$(tree)" | tar --extract --directory="$scratch/app" ||
    exit
  install=(python -m pip install --quiet --requirement=requirements.txt)
  install+=("$(extra "$type")" gcsfs kubernetes)
  command="cd /app && $(words "${install[@]}") && $command"
fi
if [ $tool = gcluster ]; then
  submit=(gcluster job submit "--name=$name" "--compute-type=$type")
  submit+=(--restarts=100 --restart-on-exit-codes=3,134,143 --grace-period=2m)
  [ -n "$image" ] && submit+=("--image=$image") ||
    submit+=(--base-image=python:3.11 "--build-context=$scratch")
else
  submit=(xpk workload create "--workload=$name")
  [[ $type == v[4-9]* || $type == tpu* ]] && submit+=("--tpu-type=$type") ||
    submit+=("--device-type=$type")
  # 127 to 255 are among its own.
  submit+=(--max-restarts=100 --restart-on-exit-codes=3)
  submit+=(--termination-grace-period-seconds=120)
  [ -n "$image" ] && submit+=("--docker-image=$image") ||
    submit+=(--base-docker-image=python:3.11 "--script-dir=$scratch/app")
fi
run "${submit[@]}" "${more[@]}" "--command=$command"
