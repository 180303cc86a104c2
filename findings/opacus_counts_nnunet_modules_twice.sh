#!/usr/bin/env bash
# Per-sample gradients by Opacus of nnU-Net's network (dynamic_network_architectures.PlainConvUNet).
#
# Versions:  opacus 1.6.0, dynamic-network-architectures 0.4.4, torch 2.13.0
# Guess:     ModuleValidator has nothing to object to, so the per-sample gradient of a batch of one is the gradient.
# Behaviour: nnU-Net registers one module under several names (conv and all_modules.0; encoder and decoder.encoder), and
#            Opacus hooks it once for each: gradients are 4 times too large in the encoder, 2 times in the decoder, right in
#            transposed convolutions and heads. Clipping, and so the privacy that is accounted for, is of another gradient.
# Output:    0 objections; per-sample gradient over gradient: encoder 4.0, decoder 2.0, transpconvs 1.0, seg_layers 1.0
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check \
    opacus==1.6.0 dynamic-network-architectures==0.4.4 torch==2.13.0 numpy==2.4.6
cd "$folder"
venv/bin/python - 2> /dev/null <<'PYTHON'
import torch
from dynamic_network_architectures.architectures.unet import PlainConvUNet
from opacus import GradSampleModule
from opacus.validators import ModuleValidator
from torch import nn

torch.manual_seed(0)
network = PlainConvUNet(
    1, 3, (4, 8, 8), nn.Conv2d, 3, (1, 2, 2), 2, 2, 2, conv_bias=True,
    norm_op=nn.InstanceNorm2d, norm_op_kwargs={"affine": True}, nonlin=nn.LeakyReLU, nonlin_kwargs={"inplace": False},
)
print(f"{len(ModuleValidator.validate(network))} objections; ", end="")
image = torch.randn(1, 1, 16, 16)
network(image).square().mean().backward()
expected = {name: one.grad.clone() for name, one in network.named_parameters() if one.grad is not None}
network.zero_grad()
GradSampleModule(network)(image).square().mean().backward()
ratios = {}
for name, parameter in network.named_parameters():
    if name in expected and expected[name].norm() > 1e-6:  # a bias before a normalisation has no gradient
        part = name.split(".")[0] if name.startswith("encoder") else name.split(".")[1].replace("stages", "decoder")
        ratio = (parameter.grad_sample[0].norm() / expected[name].norm()).item()
        ratios.setdefault(part, set()).add(round(ratio, 1))
order = ("encoder", "decoder", "transpconvs", "seg_layers")
print("per-sample gradient over gradient: " + ", ".join(f"{part} {', '.join(map(str, sorted(ratios[part])))}" for part in order))
assert [ratios[part] for part in order] == [{4.0}, {2.0}, {1.0}, {1.0}], ratios
PYTHON
