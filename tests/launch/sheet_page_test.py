"""The sheet of launch.sheet in a real browser, opened from disk."""

import json

import pytest

pytest.importorskip('selenium.webdriver', reason='needs selenium')

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.support.select import Select

from launch import media
from tests import tiny
from tests.launch import browser

pytestmark = [pytest.mark.full, browser.NEEDED]
ABOUT = {'a': ('red <b>wall</b>', 0.8), 'b': ('blue', 0.5), 'c': ('red', 0.2)}


def make_folder(folder):
  folder.mkdir()
  frames = [tiny.picture(size=32)] * 5
  for name, (text, r) in ABOUT.items():
    media.write_video(folder / f'{name}.mp4', frames, tiny.speech(0.2))
    about = json.dumps({'text': text, 'r': r})
    (folder / f'{name}.json').write_text(about)
  return str(folder)


@pytest.fixture
def driver():
  driver = browser.start()
  yield driver
  driver.quit()


def test_it_is_searched_filtered_and_sorted(driver, binary, tmp_path):
  one = make_folder(tmp_path / 'one')
  page = tmp_path / 'one.html'
  assert binary('sheet')(f'--input={one}', f'--out={page}') == 0
  driver.get((tmp_path / 'one.html').as_uri())
  find = lambda name: driver.find_element(By.ID, name)
  shown = lambda: driver.execute_script(
    'return [...document.querySelectorAll("article:not([hidden]) h2")]'
    '.map((e) => e.firstChild.textContent.trim())'
  )
  assert sorted(shown()) == ['a', 'b', 'c']
  assert not find('groups').is_displayed()  # There is nothing to choose.
  assert 'red <b>wall</b>' in driver.find_element(By.TAG_NAME, 'main').text
  find('find').send_keys('red')
  assert sorted(shown()) == ['a', 'c']
  find('find').send_keys(Keys.BACKSPACE * 3)
  Select(find('by')).select_by_value('r')
  assert shown() == ['a', 'b', 'c']
  find('order').click()
  assert shown() == ['c', 'b', 'a']
  find('low').send_keys('0.4')
  assert shown() == ['b', 'a'] and find('count').text == '2 of 3'
  script = 'return document.querySelector("video").videoWidth'
  assert driver.execute_script(script) == 32
  two = make_folder(tmp_path / 'two')
  page = tmp_path / 'two.html'
  assert binary('sheet')(f'--input={one},{two}', f'--out={page}') == 0
  driver.get((tmp_path / 'two.html').as_uri())
  boxes = find('groups').find_elements(By.TAG_NAME, 'input')
  boxes[0].click()
  assert len(shown()) == 3
