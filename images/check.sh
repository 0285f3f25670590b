#!/usr/bin/env bash
# Builds the images with podman on a base that is made here, so that no registry is needed, and starts what is in them as
# a pod would: not root, read-only, without network or capabilities. `make images-check` runs this; docs/airflow.md says
# what it needs. Arguments: which images, by default all that can be built without a registry.
set -euo pipefail
cd "$(dirname "$0")/.."

BASE=${BASE:-localhost/scan2twin/base:bookworm}
read -ra options <<<"${BUILD_OPTIONS:-}" # of podman build: volumes and variables for a package index of your own
images=("$@")
[ "${#images[@]}" -gt 0 ] || images=(preprocessing reconstruction airflow)

if ! podman image exists "$BASE"; then
  root=$(mktemp -d)
  trap 'rm -rf "$root"' EXIT
  debootstrap --variant=minbase --include=python3,python3-venv,python3-pip,ca-certificates bookworm "$root"
  ln -s python3 "$root/usr/bin/python"
  tar -C "$root" --exclude=./var/cache/apt/archives/* -c . | podman import - "$BASE"
fi

as_a_pod() {
  podman run --rm --read-only --network=none --cap-drop=all --security-opt=no-new-privileges --user=10001:10001 --no-healthcheck \
    --tmpfs=/tmp:rw,mode=1777 "$@"
}

for image in "${images[@]}"; do
  tag=localhost/scan2twin/$image
  base=$BASE
  [ "$image" != airflow ] || base=localhost/scan2twin/preprocessing
  # Podman 4 does not find a stage whose name has an argument in it.
  sed 's/nvdiffrast-${NVDIFFRAST}/nvdiffrast-0/' "images/$image/Dockerfile" |
    podman build --network=host --format=docker "${options[@]}" --build-arg=BASE="$base" \
      --build-arg=COMMIT="$(git rev-parse HEAD)" --file=- --tag="$tag" .
  as_a_pod --entrypoint=python "$tag" -c '
import json
from importlib.metadata import distributions
found = {part["name"].lower().replace("_", "-") for part in json.load(open("/opt/venv/sbom.cdx.json"))["components"]}
lacking = {d.name.lower().replace("_", "-").replace(".", "-") for d in distributions()} - {n.replace(".", "-") for n in found} - {"scan2twin"}
assert not lacking, f"not in the list of what is in the image: {lacking}"
print(f"{len(found)} packages are listed in sbom.cdx.json")'
  if [ "$image" = airflow ]; then
    as_a_pod "$tag" version
    as_a_pod --entrypoint=python --env=AIRFLOW__DATABASE__SQL_ALCHEMY_CONN=sqlite:////tmp/airflow.db "$tag" -c '
from airflow.dag_processing.dagbag import DagBag
from airflow.plugins_manager import get_plugin_info
found = DagBag("/opt/airflow/dags")
assert not found.import_errors, found.import_errors
print("DAGs:", *sorted(found.dags), "plugins:", *(plugin["name"] for plugin in get_plugin_info()))'
  else
    as_a_pod "$tag" doctor
  fi
  podman image inspect --format="$tag: {{.Size}} bytes, user {{.Config.User}}, {{.Config.Healthcheck}}" "$tag"
done
