#!/usr/bin/env bash
# The state_dict of nnU-Net's networks, sent with Flower.
#
# Versions:  dynamic_network_architectures 0.4.4 (nnU-Net's networks), flwr 1.42.0, torch 2.13.0 (CPU)
# Guess:     ArrayRecord(network.state_dict()), as in Flower's examples, moves about as many bytes as torch.save writes.
# Behaviour: state_dict lists most tensors two to four times (decoder.encoder.* is encoder.*, all_modules.* are conv and
#            norm). torch.save stores shared tensors once, ArrayRecord copies each key: about three times the bytes.
# Output:    188 keys, 68 tensors; parameters 485976 bytes, torch.save 1.1 times that, ArrayRecord 3.2 times
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check torch==2.13.0 numpy==2.3.5 flwr==1.42.0
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check --no-deps dynamic_network_architectures==0.4.4
cd "$folder"
FLWR_TELEMETRY_ENABLED=0 venv/bin/python - <<'PYTHON'
import io

import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from flwr.app import ArrayRecord
from torch import nn

network = PlainConvUNet(
    1, 4, [8, 16, 32, 64], nn.Conv2d, 3, [1, 2, 2, 2], 2, 2, 2, conv_bias=True, norm_op=nn.InstanceNorm2d,
    norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, deep_supervision=True,
)
state = network.state_dict()
tensors = len({tensor.data_ptr() for tensor in state.values()})
parameters = sum(tensor.nbytes for tensor in network.parameters())
file = io.BytesIO()
torch.save(state, file)
saved = len(file.getvalue()) / parameters
sent = sum(len(array.data) for array in ArrayRecord(state).values()) / parameters
print(
    f"{len(state)} keys, {tensors} tensors; parameters {parameters} bytes, torch.save {saved:.1f} times that, "
    f"ArrayRecord {sent:.1f} times"
)
assert (len(state), tensors) == (188, 68)
assert saved < 1.2
assert sent > 3
PYTHON
