#!/bin/sh
# Reads secrets from files, where an orchestrator mounts them, and starts one of Airflow's commands.
set -eu
for name in AWS_ACCESS_KEY_ID AWS_SECRET_ACCESS_KEY; do
  eval "file=\${${name}_FILE:-}"
  if [ -n "$file" ]; then
    value=$(cat "$file")
    export "$name=$value"
  fi
done
exec airflow "$@"
