"""DPM-Solver++(2M) for flows against diffusers' scheduler."""

import jax
from jax import numpy as jnp
import numpy as np
import pytest

from mirage_jax import solvers

REASON = 'parity with the original needs the `convert` extra'
torch = pytest.importorskip('torch', reason=REASON)
diffusers = pytest.importorskip('diffusers', reason=REASON)

# diffusers makes NumPy arrays of torch's.
pytestmark = pytest.mark.filterwarnings('ignore:__array__ implementation')


def velocity(x, sigma, cos):
  """Towards the data, and not straight."""
  return (0.3 - x) * (1.5 - sigma) + cos(3 * x)


def test_every_step_is_that_of_diffusers():
  scheduler = diffusers.DPMSolverMultistepScheduler(
    algorithm_type='dpmsolver++',
    prediction_type='flow_prediction',
    use_flow_sigmas=True,
    euler_at_final=True,  # As ours: from the last noise level by first order.
  )
  scheduler.set_timesteps(12)
  noise = np.linspace(-2, 2, 7)
  with jax.enable_x64(True):
    solver = solvers.get('dpmpp_2m')
    state = solver.start(jnp.asarray(noise))
    sigmas = scheduler.sigmas.double().numpy()
    assert sigmas[-1] == 0
    x = torch.from_numpy(noise)
    for time, sigma, after in zip(
      scheduler.timesteps, sigmas[:-1], sigmas[1:], strict=True
    ):
      # Its velocity points from data to noise.
      x = scheduler.step(-velocity(x, sigma, torch.cos), time, x).prev_sample
      ours = lambda x, sigma: velocity(x, sigma, jnp.cos)
      state = solver.step(ours, state, sigma, after)
      np.testing.assert_allclose(state.x, x.numpy(), rtol=1e-5, atol=1e-6)
