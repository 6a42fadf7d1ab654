"""Mochi's side of `launch.bench`: diffusers' own model, eager on the CPU.

Needs the `convert` extra. The fused AdamW is torch's fastest on a CPU.
"""

from collections.abc import Mapping

import numpy as np

from launch.side_by_side import Workload, num_threads

SIGMA, NEXT_SIGMA = 0.75, 0.5


def mochi(task: str, sizes: Mapping[str, int]) -> Workload:
  """The steps of `bench_ours.mochi`.

  Latents are B C F Y X here, the timestep is 1000 * (1 - sigma) and the output
  data - noise.
  """
  import diffusers
  import torch

  torch.set_num_threads(num_threads())
  torch.manual_seed(0)
  model = diffusers.MochiTransformer3DModel(
    num_attention_heads=sizes['heads'],
    attention_head_dim=sizes['head_dim'],
    num_layers=sizes['depth'],
    pooled_projection_dim=sizes['text_width'],
    in_channels=sizes['channels'],
    text_embed_dim=sizes['features'],
  )
  batch, length = sizes['batch'], sizes['text_length']
  names = ('batch', 'channels', 'frames', 'rows', 'columns')
  video = torch.randn([sizes[name] for name in names])
  text = torch.randn(batch, length, sizes['features'])
  mask = torch.ones(batch, length, dtype=torch.bool)

  def velocity(x, sigma):
    return model(x, text, 1000 * (1 - sigma), mask, return_dict=False)[0]

  optimizer = torch.optim.AdamW(
    model.parameters(), lr=1e-4, weight_decay=0.01, fused=True
  )

  def train():
    sigma, noise = torch.rand(batch), torch.randn_like(video)
    level = sigma[:, None, None, None, None]
    x = (1 - level) * video + level * noise
    loss = torch.mean((velocity(x, sigma) - (video - noise)) ** 2)
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    loss.item()

  @torch.inference_mode()
  def sample():
    v = velocity(video, torch.full((batch,), SIGMA))
    return video + v * (SIGMA - NEXT_SIGMA)

  steps = {'train': train, 'sample': sample}
  num_params = sum(int(np.prod(p.shape)) for p in model.parameters())
  return Workload(steps[task], num_params)
