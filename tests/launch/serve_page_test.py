"""The page of launch.serve in a real browser, by real clicks."""

import base64
import io
import time

import numpy as np
from PIL import Image
import pytest
import soundfile

from launch import generate, media
from launch.serve_jobs import Limits
from tests import tiny

pytest.importorskip('selenium.webdriver', reason='needs selenium')
pytest.importorskip('uvicorn', reason='needs the serve extra')
pytest.importorskip('fastapi', reason='needs the serve extra')

from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys

from launch import serve_facts, talk
from launch.settings import USUAL
from tests.launch import browser
from tests.launch.http_server import Server

pytestmark = [pytest.mark.full, browser.NEEDED]
PATIENCE = 900  # Seconds; a browser is slow where the CPU is shared.
LIMITS = Limits(seconds=20, letters=60)


def work(job):
  """A video of the right length in which the picture gets brighter."""
  order = job.order
  wave = tiny.speech(1.6)
  if order.audio:
    wave = talk.read_wave(order.audio)
  job.seconds, job.wave = len(wave) / 16000, [(-0.5, 0.5), (-0.2, 0.2)] * 9
  job.steps = 4

  def windows():
    left = generate.num_frames(len(wave))
    while left > 0:
      while order.text_to_speech == 'for ever':
        job.check()
        time.sleep(0.02)
      count = min(left, 25)
      time.sleep(0.5)
      job.advance()
      job.frames += count
      job.first_frame = job.first_frame or 0.5
      job.mouth += np.linspace(0.1, 0.4, count).tolist()
      light = np.linspace(40, 220, count).astype(np.uint8)
      yield np.broadcast_to(light[:, None, None, None], (count, 96, 96, 3))
      left -= count

  with (job.folder / 'live.mp4').open('wb') as live:
    talk.film(job.folder / 'video.mp4', windows(), wave, live=live)


class Studio:
  has_face, measures_lips = True, True


class Model:
  size, window_frames, text_length = 96, 50, 40
  own_steps, usual = 0, USUAL


@pytest.fixture
def page(tmp_path, chat):
  from launch.script import Endpoint

  facts = serve_facts.facts(Model(), Studio(), LIMITS)
  endpoint = Endpoint(chat.url, 'm')
  server = Server(tmp_path / 'jobs', work, LIMITS, facts, endpoint)
  driver = browser.start()
  driver.get(server.url)
  yield Page(driver)
  driver.quit()
  server.close()


class Page:
  def __init__(self, driver):
    self.driver = driver

  def __call__(self, name):
    return self.driver.find_element(By.ID, name)

  def click(self, name):
    self(name).click()

  def until(self, condition):
    end = time.monotonic() + PATIENCE
    while not (found := condition()):
      assert time.monotonic() < end, self.driver.find_element(
        By.TAG_NAME, 'body'
      ).text
      time.sleep(0.2)
    return found

  def until_status(self, said):
    self.until(lambda: self('status').text.startswith(said))

  def run(self, script):
    return self.driver.execute_script(script)

  def cards(self):
    """Titles of the history, at one moment: it is drawn anew at any."""
    return self.run(
      'return [...document.querySelectorAll(".card span")]'
      '.map((e) => e.textContent)'
    )


def sound_bytes():
  file = io.BytesIO()
  soundfile.write(file, tiny.speech(1), 16000, format='WAV')
  return file.getvalue()


def picture_bytes():
  file = io.BytesIO()
  Image.fromarray(tiny.picture(size=96)).save(file, 'PNG')
  return file.getvalue()


def plays(page):
  """Whether the video on the stage goes on."""
  script = 'const v = document.getElementById("video"); return v.currentTime'
  before = page.run(script)
  page.until(lambda: page.run(script) != before)
  return page.run('return document.getElementById("video").videoWidth') == 96


def colours(page):
  """How many pixels of the plot have something on them."""
  return page.run(
    'const c = document.getElementById("plot");'
    'const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;'
    'let n = 0; for (let i = 3; i < d.length; i += 4) n += d[i] > 0; return n'
  )


def test_words_become_a_video_that_plays(page, chat):
  page.until(lambda: '96 × 96 pixels' in page('model').text)
  chat.answers.append(chat.good(script='Written words.'))
  page('request').send_keys('greet')
  page.click('write')
  box = page('text_to_speech')
  page.until(lambda: box.get_attribute('value') == 'Written words.')
  assert page('letters').text == '14'
  slider = page('audio_cfg')
  assert slider.get_attribute('value') == '3'
  slider.send_keys(Keys.ARROW_RIGHT, Keys.ARROW_RIGHT)
  page.driver.find_element(By.TAG_NAME, 'summary').click()
  page('cache').send_keys('from step')
  page('guidance_schedule').send_keys('strong')
  page('guidance_rescale').send_keys(*[Keys.ARROW_RIGHT] * 7)
  page('negative_text').send_keys('fog')
  page.click('make')
  page.until(lambda: 'weight of the text is 1' in page('wrong').text)
  page('text_cfg').send_keys(Keys.ARROW_RIGHT)
  page.click('make')
  page.until(lambda: page('title').text == 'Written words.')
  page.until_status('done in ')
  assert plays(page) and colours(page) > 2000
  figures = page('figures').text
  assert 'length\n1.6 s' in figures and 'first frame after\n0.5 s' in figures
  assert page.cards() == ['Written words.']
  # The form had the slider's value: the job tells.
  about = page.run(
    'return fetch("/api/jobs").then((r) => r.json()).then((b) => b.jobs[0])'
  )['about']
  assert about['audio_cfg'] == '4' and about['face'] == 'shipped'
  assert about['cache'] == 'fast' and about['guidance_schedule'] == 'cosine'
  assert about['negative_text'] == 'fog' and about['text_cfg'] == '1.5'
  assert about['guidance_rescale'] == '0.7'
  page.driver.refresh()
  page.until(lambda: page.cards() == ['Written words.'])
  page.until_status('done in ')
  severe = [e for e in page.driver.get_log('browser') if e['level'] == 'SEVERE']
  assert severe == []


def test_files_recordings_and_mistakes(page, tmp_path):
  soundfile.write(tmp_path / 'voice.wav', tiny.speech(2), 16000)
  (tmp_path / 'notes.wav').write_text('no sound')
  media.write_image(tmp_path / 'me.png', tiny.picture(size=96))
  page.until(lambda: page('model').text)
  page.click('make')
  page.until(lambda: page('wrong').text.startswith('give either audio'))
  page.click('tab-file')
  page.click('make')
  page.until(lambda: page('wrong').text == 'choose a sound first')
  page('audio').send_keys(str(tmp_path / 'notes.wav'))
  page.click('make')
  page.until(lambda: page('wrong').text.startswith('audio: is not media'))
  page('audio').send_keys(str(tmp_path / 'voice.wav'))
  page('image').send_keys(str(tmp_path / 'me.png'))
  assert page('audio-name').text == 'voice.wav'
  page.click('make')
  page.until(lambda: page('title').text == 'voice.wav')
  assert not page('wrong').is_displayed()
  page.until_status('done in ')
  assert plays(page)
  page.click('tab-record')
  page.click('mic')
  page.until(lambda: page('clock').text >= '1.0 s')
  page.click('mic')
  page.until(lambda: page('mic-says').text == 'Record again')
  page.click('make')
  page.until(lambda: page('title').text == 'recording')
  page.until_status('done in ')
  assert page.cards() == ['recording', 'voice.wav']
  page.driver.find_elements(By.CLASS_NAME, 'card')[1].click()
  page.until(lambda: page('title').text == 'voice.wav')
  page.driver.find_elements(By.CLASS_NAME, 'bin')[0].click()
  page.until(lambda: page.cards() == ['voice.wav'])


def test_sounds_and_pictures_are_dropped(page):
  """As a browser tells it: a drop event with files on the zone."""
  drop = """
    const [zone, name, type] = arguments;
    const transfer = new DataTransfer();
    const bytes = Uint8Array.from(atob(arguments[3]), (c) => c.charCodeAt(0));
    transfer.items.add(new File([bytes], name, { type }));
    for (const kind of ['dragover', 'drop']) {
      zone.dispatchEvent(new DragEvent(kind, {
        dataTransfer: transfer, bubbles: true, cancelable: true,
      }));
    }
  """
  page.until(lambda: page('model').text)
  page.click('tab-file')
  for zone, kind, data in (
    ('drop-audio', 'audio/wav', sound_bytes()),
    ('drop-image', 'image/png', picture_bytes()),
  ):
    name = f'dropped.{kind[-3:]}'
    text = base64.b64encode(data).decode()
    page.driver.execute_script(drop, page(zone), name, kind, text)
  assert page('audio-name').text == 'dropped.wav'
  assert page('portrait').is_displayed()
  page.click('make')
  page.until_status('done in ')
  about = page.run(
    'return fetch("/api/jobs").then((r) => r.json()).then((b) => b.jobs[0])'
  )['about']
  assert about['sound'] == 'dropped.wav' and about['image'] == 'dropped.png'


def test_cards_of_jobs_that_are_not_on_the_stage_go_on(page):
  page.until(lambda: page('model').text)
  for words in ('first', 'second'):
    page('text_to_speech').clear()
    page('text_to_speech').send_keys(words)
    page.click('make')
    page.until(lambda words=words: words in page.cards())
  second, first = page.driver.find_elements(By.CLASS_NAME, 'card')
  first.click()
  page.until_status('done in ')
  assert page('title').text == 'first'
  assert page.driver.switch_to.active_element == first
  script = 'return document.querySelectorAll(".card video").length'
  page.until(lambda: page.run(script) == 2)
  # The cards are those of before, though what they show has changed.
  second.click()
  page.until(lambda: page('title').text == 'second')


def test_a_video_can_be_cancelled(page):
  page.until(lambda: page('model').text)
  page('text_to_speech').send_keys('for ever')
  page.click('make')
  page.until_status('step 0 of 4')
  assert page('cancel').is_displayed()
  page.click('cancel')
  page.until_status('cancelled')
  assert not page('cancel').is_displayed()
  page('text_to_speech').send_keys('x' * 60)
  page.click('make')
  page.until(lambda: 'has 68 letters, at most 60' in page('wrong').text)
