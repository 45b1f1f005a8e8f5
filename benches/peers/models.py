"""The networks of the comparison in PyTorch: torchvision's, and the residual networks for CIFAR."""

import re

import torch
import torch.nn.functional as F
import torchvision
from torch import nn
from torchvision.ops import StochasticDepth

# resnet110_cifar, resnet56_cifar_option_b, resnet110_cifar_survival05 (the last block survives with probability 0.5).
CIFAR = re.compile(r"resnet(\d+)_cifar(_option_b)?(?:_survival(\d)(\d*))?$")


class Block(nn.Module):
    """Two 3x3 convolutions and a shortcut; the shortcut of option A is every second pixel and zero channels."""

    def __init__(self, c, k, stride, project, drop):
        super().__init__()
        self.conv1 = nn.Conv2d(c, k, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(k)
        self.conv2 = nn.Conv2d(k, k, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(k)
        self.relu = nn.ReLU(inplace=True)
        self.stride, self.more = stride, k - c
        self.downsample = None
        if project and c != k:
            self.downsample = nn.Sequential(nn.Conv2d(c, k, 1, stride, bias=False), nn.BatchNorm2d(k))
        # torchvision computes the branch of every image and multiplies it by the image's gate.
        self.depth = StochasticDepth(drop, "row") if drop else None

    def forward(self, x):
        y = self.relu(self.bn1(self.conv1(x)))
        y = self.bn2(self.conv2(y))
        if self.depth is not None:
            y = self.depth(y)
        if self.downsample is not None:
            x = self.downsample(x)
        elif self.more:
            x = F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, 0, self.more))
        return self.relu(y + x)


class Cifar(nn.Module):
    """A residual network of 6n + 2 layers for images of 32x32 pixels."""

    def __init__(self, depth, project=False, survival=1.0, classes=10):
        super().__init__()
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a network of {depth} layers: expected 6n + 2")
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        blocks, c = [], 16
        for i in range(3 * n):
            k = 16 << i // n
            drop = (i + 1) / (3 * n) * (1 - survival)
            blocks.append(Block(c, k, 1 if c == k else 2, project, drop))
            c = k
        self.blocks = nn.Sequential(*blocks)
        self.fc = nn.Linear(64, classes)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)), inplace=True)
        return self.fc(self.blocks(x).mean((2, 3)))


def build(name):
    """The network called `name`, the height and width of its images, and its number of classes."""
    match = CIFAR.match(name)
    if match:
        survival = 1.0 if match[3] is None else float(f"{match[3]}.{match[4] or 0}")
        return Cifar(int(match[1]), bool(match[2]), survival), 32, 10
    if name not in torchvision.models.list_models(module=torchvision.models):
        raise ValueError(f"unknown model {name}: neither torchvision's nor a residual network for CIFAR")
    return torchvision.models.get_model(name, weights=None), 224, 1000


def parameters(name):
    """The number of trained elements."""
    return sum(p.numel() for p in build(name)[0].parameters())


if __name__ == "__main__":
    torch.manual_seed(0)
    for model, count in [("resnet20_cifar", 269_722), ("resnet110_cifar", 1_727_962), ("resnet50", 25_557_032),
                         ("resnet110_cifar_option_b", 1_730_714), ("resnet110_cifar_survival05", 1_727_962)]:
        assert parameters(model) == count, (model, parameters(model))
    depths = [b.depth.p for b in build("resnet110_cifar_survival05")[0].blocks]
    assert len(depths) == 54 and abs(depths[-1] - 0.5) < 1e-12 and abs(depths[0] - 0.5 / 54) < 1e-12
    assert build("resnet20_cifar")[0](torch.randn(2, 3, 32, 32)).shape == (2, 10)
    print("ok")
