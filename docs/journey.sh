#!/bin/sh
# From photos with VOC annotations to an exported detector, in one go.
#
#   sh docs/journey.sh BCCD [FOLDER]       results in FOLDER (default: runs/journey)
#
# Run it in the project's folder, in the environment that `make setup` makes. Extra flags for training
# are taken from TRAIN, such as TRAIN="--config.num_steps=50" for a short one.
set -eu
photos=${1:?"name the folder with the photos: sh docs/journey.sh BCCD"}
out=${2:-runs/journey}
data="--config.data.dir=$out/data"

step() { printf '\n--- %s\n' "$*"; "$@"; }

step scratchdet prepare voc --folder="$photos" --name=journey --data_dir="$out/data"
step scratchdet doctor voc_folder/journey --data_dir="$out/data" \
    --config=configs/voc_folder.py --html="$out/doctor.html"
step python train.py --config=configs/voc_folder.py --config.data.train=voc_folder/journey:train \
    --config.data.eval=voc_folder/journey:val "$data" --workdir="$out/run" ${TRAIN:-}
step python eval.py --workdir="$out/run"
step scratchdet report "$out/run" --output="$out/report.html"
step scratchdet export --workdir="$out/run" --output="$out/detector.jaxexport"
step scratchdet predict --workdir="$out/detector.jaxexport" --output="$out/found" \
    "$photos/JPEGImages"
printf '\nthe detector: %s\n' "$out/detector.jaxexport"
