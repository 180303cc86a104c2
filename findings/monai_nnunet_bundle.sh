#!/usr/bin/env bash
# A model that nnU-Net trained, handed over to MONAI by MONAI's own converter.
#
# Versions:  monai 1.6.1, nnunetv2 2.8.1, torch 2.13.0
# Guess:     convert_nnunet_to_monai_bundle converts what nnU-Net writes, and ModelnnUNetWrapper reads what it wrote.
# Behaviour: neither. The converter stops at the checkpoints, which hold NumPy scalars from the first epoch on, as it
#            loads them with weights_only=True. Without these (log emptied, best Dice as a Python number) it converts, but
#            the wrapper, and get_nnunet_monai_predictor with it, calls nnU-Net's build_network_architecture with the
#            arguments that this had in nnunetv2 2.6.
# Output:    after a line of nnU-Net's own on devices: as trained: UnpicklingError, 0 files; without NumPy scalars: no
#            error, 5 files; read back: TypeError (got multiple values for argument 'enable_deep_supervision')
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    torch==2.13.0 numpy==2.3.5 nnunetv2==2.8.1 monai==1.6.1
cd "$folder"
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
cat > script.py <<'PYTHON'
from pathlib import Path

from nnunet_squares import train


def main():
    import torch
    from monai.apps.nnunet import ModelnnUNetWrapper, convert_nnunet_to_monai_bundle
    from nnunetv2.inference.predict_from_raw_data import nnUNetPredictor

    models = Path("bundle/models")
    models.mkdir(parents=True)

    def convert():
        try:
            convert_nnunet_to_monai_bundle({"dataset_name_or_id": "1", "nnunet_configuration": "2d"}, "bundle")
            error = "no error"
        except Exception as raised:
            error = type(raised).__name__
        return f"{error}, {sum(path.is_file() for path in models.rglob('*'))} files"

    trainer = train(size=32)
    as_trained = convert()
    for name in ("checkpoint_final.pth", "checkpoint_best.pth"):
        path = Path(trainer.output_folder) / name
        checkpoint = torch.load(path, weights_only=False)
        checkpoint["_best_ema"] = float(checkpoint["_best_ema"])
        checkpoint["logging"] = {}
        torch.save(checkpoint, path)
    without_scalars = convert()
    try:
        ModelnnUNetWrapper(nnUNetPredictor(device=torch.device("cpu")), models / "fold_0")
        read = "no error"
    except Exception as raised:
        read = f"{type(raised).__name__} ({str(raised).partition('() ')[2]})"
    print(f"as trained: {as_trained}; without NumPy scalars: {without_scalars}; read back: {read}")
    assert as_trained == "UnpicklingError, 0 files"
    assert without_scalars == "no error, 5 files"
    assert read == "TypeError (got multiple values for argument 'enable_deep_supervision')"


if __name__ == "__main__":  # nnU-Net's worker processes import this file
    main()
PYTHON
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" venv/bin/python script.py 2> log || { tail -n 30 log; exit 1; }
