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
# Airflow opens the passwords of its simple login for writing, also to read them; where secrets are mounted it cannot.
if [ -n "${AIRFLOW_PASSWORDS_FILE:-}" ]; then
  (umask 077 && cat "$AIRFLOW_PASSWORDS_FILE" >"$AIRFLOW__CORE__SIMPLE_AUTH_MANAGER_PASSWORDS_FILE")
fi
exec airflow "$@"
