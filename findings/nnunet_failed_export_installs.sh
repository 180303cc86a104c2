#!/usr/bin/env bash
# Handing over a model of which one fold is trained, by nnU-Net's own export and installation.
#
# Versions:  nnunetv2 2.8.1
# Guess:     an export that fails leaves no file, --not_strict exports what is there, and a zip without a model is not
#            installed.
# Behaviour: the export ends with an error and leaves an empty zip (22 bytes); --not_strict changes nothing, as the option
#            stores the value that it has anyway; the empty zip is installed with exit code 0.
# Output:    as is: error, zip of 22 bytes; --not_strict: error, zip of 22 bytes; installed: exit code 0, 0 files
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 nnunetv2==2.8.1
cd "$folder"
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
model=$nnUNet_results/Dataset001_Phantom/nnUNetTrainer__nnUNetPlans__2d
mkdir -p "$nnUNet_raw/Dataset001_Phantom" "$nnUNet_preprocessed" "$model/fold_0/validation" "$folder/elsewhere"
for name in dataset.json dataset_fingerprint.json plans.json fold_0/debug.json fold_0/validation/summary.json; do
    echo '{}' > "$model/$name"
done
touch "$model/fold_0/checkpoint_final.pth" "$model/fold_0/progress.png"
run() { venv/bin/python -c "from nnunetv2.model_sharing.entry_points import $1 as main; main()" "${@:2}" > /dev/null 2>&1; }
export_model() { run export_pretrained_model_entry -d 1 -o model.zip -f 0 "$@" && echo "no error" || echo "error"; }

strict="$(export_model), zip of $(stat -c %s model.zip) bytes"
rm model.zip
lenient="$(export_model --not_strict), zip of $(stat -c %s model.zip) bytes"
code=0
nnUNet_results=$folder/elsewhere run install_from_zip_entry_point model.zip || code=$?
installed="exit code $code, $(find elsewhere -type f | wc -l) files"
echo "as is: $strict; --not_strict: $lenient; installed: $installed"
[ "$strict; $lenient; $installed" = "error, zip of 22 bytes; error, zip of 22 bytes; exit code 0, 0 files" ]
