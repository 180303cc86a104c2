#!/usr/bin/env bash
# Training of images so small that nnU-Net plans a network of two stages.
#
# Versions:  nnunetv2 2.8.1, torch 2.13.0
# Guess:     what nnU-Net plans from a dataset, it trains, or it stops with an error.
# Behaviour: deep supervision weighs the outputs 1, 1/2, 1/4, ..., sets the coarsest one's weight to 0 and divides by
#            the sum. Two stages have one output, the coarsest: 0/0. The loss is NaN from the first step on; training ends
#            without an error, and the model that it writes holds nothing but NaN.
# Output:    12 x 12 pixels: 2 stages, weights of the outputs [nan], loss of the epoch [nan], 0 of 84 tensors of the model
#            hold a finite number
set -euo pipefail
here=$(cd "$(dirname "$0")" && pwd)
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 nnunetv2==2.8.1
cd "$folder"
export nnUNet_raw=$folder/raw nnUNet_preprocessed=$folder/preprocessed nnUNet_results=$folder/results
cat > script.py <<'PYTHON'
from nnunet_squares import train


def main():
    import torch

    trainer = train(size=12)
    stages = len(trainer.configuration_manager.pool_op_kernel_sizes)
    weights = [float(weight) for weight in trainer.loss.weight_factors]
    losses = [float(loss) for loss in trainer.logger.get_value("train_losses", step=None)]
    model = torch.load(f"{trainer.output_folder}/checkpoint_final.pth", weights_only=False)["network_weights"]
    finite = sum(bool(torch.isfinite(tensor).any()) for tensor in model.values())
    print(
        f"12 x 12 pixels: {stages} stages, weights of the outputs {weights}, loss of the epoch {losses}, "
        f"{finite} of {len(model)} tensors of the model hold a finite number"
    )
    assert stages == 2
    assert repr(weights) == repr(losses) == "[nan]"
    assert finite == 0


if __name__ == "__main__":  # nnU-Net's worker processes import this file
    main()
PYTHON
PYTHONDONTWRITEBYTECODE=1 PYTHONPATH="$here" venv/bin/python script.py 2> log || { tail -n 30 log; exit 1; }
