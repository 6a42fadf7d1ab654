"""Chromium without a window, as Debian packages it, driven by selenium."""

import shutil

import pytest
from selenium import webdriver

PROGRAMS = shutil.which('chromium'), shutil.which('chromedriver')
NEEDED = pytest.mark.skipif(
  None in PROGRAMS, reason='needs chromium and chromium-driver of Debian'
)


def start() -> webdriver.Chrome:
  """A browser with a microphone that hums; whoever starts it quits it."""
  options = webdriver.ChromeOptions()
  options.binary_location = PROGRAMS[0]
  options.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
  for flag in (
    'headless=new',
    'no-sandbox',
    'disable-gpu',
    'disable-dev-shm-usage',
    'window-size=1400,1200',
    'use-fake-ui-for-media-stream',
    'use-fake-device-for-media-stream',
  ):
    options.add_argument(f'--{flag}')
  return webdriver.Chrome(options, webdriver.ChromeService(PROGRAMS[1]))
