"""Torch's side of `launch.bench_amdim`: the same step, eager, channels last.

Needs the `convert` extra. Imports nothing of JAX, whose memory is not torch's.
"""

from collections.abc import Mapping
import math
from typing import Any

from launch.side_by_side import Workload

CLASSES, CLIP = 10, 20.0


def step(sizes: Mapping[str, Any]) -> Workload:
  """Both views through the encoder one by one, the losses, and Adam.

  Args:
    sizes: image_size, ndf, n_rkhs and n_depth of the encoder, and batch.
  """
  import torch

  torch.set_num_threads(1)
  torch.manual_seed(0)
  model = make_model(sizes).to(memory_format=torch.channels_last)
  optimizer = torch.optim.Adam(
    model.parameters(), lr=2e-4, betas=(0.8, 0.999), weight_decay=1e-5
  )
  batch, size = sizes['batch'], sizes['image_size']
  labels = torch.randint(0, CLASSES, (batch,))
  views = [torch.randn(batch, 3, size, size) for _ in range(2)]
  views = [v.contiguous(memory_format=torch.channels_last) for v in views]

  def once():
    one, two = (model.encode(view) for view in views)
    loss = infomax(one, two)
    r1 = torch.cat([one[0], two[0]]).detach()
    for head in (model.linear, model.mlp):
      logits = head(r1)
      clipped = 10 * torch.tanh(logits / 10)
      fit = torch.nn.functional.cross_entropy(clipped, labels.repeat(2))
      loss = loss + fit + 1e-3 * logits.square().mean()
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()

  num_params = sum(p.numel() for p in model.parameters())
  return Workload(once, num_params)


def infomax(one, two):
  """The objective between (r1, r5, r7) of two views."""
  import torch

  total = 0.0
  for (r1, r5, _), (_, other5, other7) in ((one, two), (two, one)):
    place = torch.randint(0, 25, (len(r1),))
    local = r5.flatten(2)[torch.arange(len(r1)), :, place]
    for source, target in ((r1, other5), (r1, other7), (local, other5)):
      total = total + nce(source, target) / 2
  return total


def nce(source, target):
  """Mean over images and positions, with the regulariser."""
  import torch

  batch, dim = source.shape
  flat = target.permute(1, 0, 2, 3).reshape(dim, -1)
  raw = (source @ flat).view(batch, batch, -1) / math.sqrt(dim)
  score = CLIP * torch.tanh(raw / CLIP)
  own = torch.eye(batch, dtype=torch.bool)[..., None]
  positive = score.diagonal().T
  terms = torch.exp(score - CLIP).masked_fill(own, 0).sum((1, 2))
  shifted = positive - CLIP
  fit = shifted - torch.log(torch.exp(shifted) + terms[:, None])
  return 5e-2 * raw.square().mean() - fit.mean()


def make_parts(width: int):
  """The residual layer, and the head from a map to `width` channels."""
  import torch
  from torch.nn import functional

  class Residual(torch.nn.Module):
    def __init__(self, inputs, outputs, kernel, stride):
      super().__init__()
      self.more, self.window = outputs - inputs, (kernel, stride)
      self.conv1 = torch.nn.Conv2d(inputs, outputs, kernel, stride, bias=False)
      self.conv2 = torch.nn.Conv2d(outputs, outputs, 1, bias=False)

    def forward(self, x):
      y = self.conv2(functional.relu(self.conv1(x)))
      skip = functional.avg_pool2d(x, *self.window)
      return y + functional.pad(skip, (0, 0, 0, 0, 0, self.more))

  class Head(torch.nn.Module):
    def __init__(self, inputs):
      super().__init__()
      self.conv1 = torch.nn.Conv2d(inputs, width, 1, bias=False)
      self.conv2 = torch.nn.Conv2d(width, width, 1, bias=False)
      self.shortcut = torch.nn.Conv2d(inputs, width, 1)
      self.norm = torch.nn.BatchNorm2d(width)

    def forward(self, x):
      y = self.conv2(functional.relu(self.conv1(x)))
      return self.norm(y + self.shortcut(x))

  return Residual, Head


def make_model(sizes: Mapping[str, Any]):
  """Encoder for 32 or 64 pixels and both classifiers (authors' model.py)."""
  from torch import nn

  ndf, width, depth = sizes['ndf'], sizes['n_rkhs'], sizes['n_depth']
  small = sizes['image_size'] == 32
  last = 4 * ndf if small else 8 * ndf
  Residual, Head = make_parts(width)

  def block(inputs, outputs, kernel, stride):
    rest = [Residual(outputs, outputs, 1, 1) for _ in range(depth - 1)]
    return nn.Sequential(Residual(inputs, outputs, kernel, stride), *rest)

  class Model(nn.Module):
    def __init__(self):
      super().__init__()
      layers = [nn.Conv2d(3, ndf, 3), nn.ReLU()]
      if small:
        layers.append(Residual(ndf, ndf, 1, 1))
      layers.append(block(ndf, 2 * ndf, 4, 2))
      if not small:
        layers.append(block(2 * ndf, 4 * ndf, 4, 2))
      self.to7 = nn.Sequential(*layers, block(last // 2, last, 2, 2))
      self.to5 = block(last, last, 3, 1)
      self.to1 = nn.Sequential(
        block(last, last, 3, 1),
        Residual(last, width, 3, 1),
        nn.BatchNorm2d(width),
      )
      self.head5, self.head7 = Head(last), Head(last)
      self.linear = nn.Linear(width, CLASSES)
      self.mlp = nn.Sequential(
        nn.Dropout(0.2),
        nn.Linear(width, 1024, bias=False),
        nn.BatchNorm1d(1024),
        nn.ReLU(),
        nn.Dropout(0.2),
        nn.Linear(1024, CLASSES),
      )

    def encode(self, x):
      r7 = self.to7(x)
      r5 = self.to5(r7)
      return self.to1(r5).flatten(1), self.head5(r5), self.head7(r7)

  return Model().train()
