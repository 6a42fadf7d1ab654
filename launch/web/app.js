// The page: a form that makes jobs, a stage that shows one, a history of all.

import { Plot } from './plot.js';
import { Recorder } from './sound.js';

const $ = (id) => document.getElementById(id);
const ENDED = ['done', 'failed', 'cancelled'];
const NAMES = {
  audio_cfg: 'the sound',
  reference_cfg: 'the face',
  text_cfg: 'the text',
  joint_cfg: 'all of it',
};

const plot = new Plot($('plot'), $('video'));
let facts = null;
let tab = 'words';
let recording = null; // A Blob.
let chosen = null; // The job on the stage, as the server tells it.
let jobs = new Map();
let events = null;

// --- the server ---

async function ask(path, options = {}) {
  let answer;
  try {
    answer = await fetch(path, options);
  } catch {
    throw new Error('the server gives no answer; is it running?');
  }
  if (answer.status === 204) return null;
  const body = await answer.json().catch(() => ({}));
  if (!answer.ok) throw new Error(body.error ?? `the server says ${answer.status}`);
  return body;
}

function complain(error) {
  $('wrong').textContent = error?.message ?? '';
  $('wrong').hidden = !error;
  if (error) $('wrong').scrollIntoView({ block: 'nearest' });
}

// --- the form ---

function slider(weight) {
  const label = document.createElement('label');
  const input = document.createElement('input');
  const output = document.createElement('output');
  label.textContent = NAMES[weight.name];
  label.htmlFor = input.id = weight.name;
  Object.assign(input, {
    type: 'range', min: weight.low, max: Math.min(weight.high, 8), step: 0.5,
  });
  input.value = weight.usual;
  $('weights').append(label, input, output);
}

function tellValues() {
  for (const input of document.querySelectorAll('input[type=range]')) {
    input.nextElementSibling.value = input.value;
  }
  const { length } = $('text_to_speech').value;
  $('letters').textContent = length;
  $('letters').parentNode.classList.toggle('over', length > facts.limits.letters);
  const bytes = new TextEncoder().encode($('text').value).length;
  $('bytes').textContent = bytes;
  $('bytes').parentNode.classList.toggle('over', bytes > facts.text_length);
}

function fillForm() {
  facts.weights.forEach(slider);
  const options = (id, names) => names.forEach((n) => $(id).add(new Option(n)));
  options('solver', facts.solvers);
  options('guidance_schedule', facts.schedules);
  $('steps').max = Math.min(facts.limits.steps, 64);
  $('steps').value = facts.steps;
  $('most').textContent = facts.text_length;
  $('prompt-row').hidden = !facts.text_length;
  $('shipped').hidden = !facts.has_face;
  $('no-lips').hidden = facts.measures_lips;
  $('writer').hidden = !facts.writes;
  face(facts.has_face ? 'shipped' : 'none');
  tellValues();
}

function face(name) {
  document.querySelector(`[name=face][value=${name}]`).checked = true;
}

function show(name) {
  tab = name;
  for (const other of ['words', 'record', 'file']) {
    $(other).hidden = other !== name;
    $(`tab-${other}`).setAttribute('aria-selected', other === name);
    $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
  }
}

function collect() {
  const form = new FormData();
  if (tab === 'words') form.set('text_to_speech', $('text_to_speech').value);
  if (tab === 'record') {
    if (!recording) throw new Error('record something first');
    form.set('audio', recording, 'recording');
  }
  if (tab === 'file') {
    if (!$('audio').files.length) throw new Error('choose a sound first');
    form.set('audio', $('audio').files[0]);
  }
  const chosenFace = document.querySelector('[name=face]:checked').value;
  if (chosenFace === 'image') {
    if (!$('image').files.length) throw new Error('choose a picture first');
    form.set('image', $('image').files[0]);
  } else form.set('face', chosenFace);
  const ids = ['text', 'steps', 'solver', 'guidance_schedule', 'seed'];
  for (const id of [...ids, ...facts.weights.map((w) => w.name)]) {
    if ($(id).value) form.set(id, $(id).value);
  }
  let size = 0;
  for (const value of form.values()) size += value.size ?? 0;
  if (size > facts.limits.upload_mb * 1e6) {
    throw new Error(`together they may have ${facts.limits.upload_mb} MB`);
  }
  return form;
}

async function make(event) {
  event.preventDefault();
  complain(null);
  $('make').disabled = true;
  try {
    const job = await ask('/api/jobs', { method: 'POST', body: collect() });
    jobs = new Map([[job.id, job], ...jobs]);
    select(job);
    $('stage').scrollIntoView({ block: 'nearest', behavior: 'smooth' });
  } catch (error) {
    complain(error);
  }
  $('make').disabled = false;
}

// Files that are dropped, or chosen.
function takesFiles(id, input, accept) {
  const zone = $(id);
  const mark = (on) => zone.classList.toggle('over-drop', on);
  zone.addEventListener('dragover', (e) => { e.preventDefault(); mark(true); });
  zone.addEventListener('dragleave', () => mark(false));
  zone.addEventListener('drop', (e) => {
    e.preventDefault();
    mark(false);
    if (!e.dataTransfer.files.length) return;
    input.files = e.dataTransfer.files;
    accept(input.files[0]);
  });
  input.addEventListener('change', () => {
    if (input.files.length) accept(input.files[0]);
  });
}

function play(player, blob) {
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  player.hidden = false;
}

const recorder = new Recorder(
  (seconds, loud) => {
    $('clock').value = `${seconds.toFixed(1)} s`;
    $('level').value = loud;
  },
  (blob) => {
    recording = blob;
    $('level').value = 0;
    $('mic').setAttribute('aria-pressed', 'false');
    $('mic-says').textContent = 'Record again';
    play($('recorded'), blob);
  },
);

async function toggleMic() {
  if (recorder.active) return recorder.stop();
  complain(null);
  try {
    await recorder.start(facts.limits.seconds - 0.5);
    $('mic').setAttribute('aria-pressed', 'true');
    $('mic-says').textContent = 'Stop';
  } catch {
    complain(new Error('the microphone cannot be used; allow it, or give a file'));
  }
}

async function write() {
  complain(null);
  $('write').disabled = true;
  try {
    const written = await ask('/api/script', {
      method: 'POST', body: JSON.stringify({ request: $('request').value }),
    });
    $('text_to_speech').value = written.script;
    const bytes = new TextEncoder().encode(written.prompt).length;
    if (bytes <= facts.text_length) $('text').value = written.prompt;
    tellValues();
  } catch (error) {
    complain(error);
  }
  $('write').disabled = false;
}

function reuse() {
  for (const [name, value] of Object.entries(chosen.about)) {
    if ($(name)?.matches('input:not([type=file]), select, textarea')) {
      $(name).value = value;
    }
  }
  if (chosen.about.face) face(chosen.about.face);
  if (chosen.about.text_to_speech) show('words');
  tellValues();
}

// --- the stage ---

function title(job) {
  return job.about.text_to_speech || job.about.sound || 'a recording';
}

function status(job) {
  if (job.state === 'queued') {
    return !facts.ready ? 'the model is warming up'
      : job.ahead ? `${job.ahead} before it` : 'next';
  }
  if (job.state === 'failed') return job.error;
  if (job.state === 'cancelled') return 'cancelled';
  if (job.state === 'done') return `done in ${job.spent.toFixed(1)} s`;
  if (!job.steps) return 'listening';
  const left = job.left === null ? '' : `, about ${Math.ceil(job.left)} s left`;
  return `step ${job.step} of ${job.steps}${left}`;
}

function figures(job) {
  const rows = [];
  if (job.seconds) rows.push(['length', `${job.seconds.toFixed(1)} s`]);
  if (job.first_frame !== null) {
    rows.push(['first frame after', `${job.first_frame.toFixed(1)} s`]);
  }
  if (job.state === 'done') {
    const ratio = job.spent / job.seconds;
    rows.push(['work per second', `${ratio.toFixed(1)} s`]);
    for (const stage of ['compile', 'speech', 'sample', 'decode', 'mouth']) {
      const seconds = job.took[stage];
      if (seconds >= 0.1) rows.push([stage, `${seconds.toFixed(1)} s`]);
    }
    rows.push(['seed', job.about.seed ?? '0']);
  }
  $('figures').replaceChildren(...rows.map(([name, value]) => {
    const row = document.createElement('div');
    const dt = document.createElement('dt');
    const dd = document.createElement('dd');
    dt.textContent = name;
    dd.textContent = value;
    row.append(dt, dd);
    return row;
  }));
}

function source(job) {
  const path = `/api/jobs/${job.id}`;
  if (job.state === 'done') return `${path}/video.mp4`;
  return job.state === 'running' && job.frames ? `${path}/live.mp4` : '';
}

function playSource(job) {
  const video = $('video');
  const wanted = source(job);
  if (video.getAttribute('src') === wanted) return;
  const before = video.getAttribute('src') ?? '';
  const same = before.includes(job.id);
  const time = same ? video.currentTime : 0;
  if (!wanted) {
    video.removeAttribute('src');
    video.load();
    return;
  }
  video.src = wanted;
  video.addEventListener('loadedmetadata', () => {
    if (same && time < video.duration) video.currentTime = time;
  }, { once: true });
  // A browser may refuse to play sound by itself: then the user presses play.
  video.play().catch(() => plot.draw());
}

async function curves(job) {
  if (!job.seconds) return plot.set(null);
  try {
    const found = await ask(`/api/jobs/${job.id}/curves`);
    if (chosen?.id === job.id) plot.set(found);
  } catch (error) {
    complain(error);
  }
}

function render(job) {
  $('empty').hidden = true;
  $('show').hidden = false;
  $('title').textContent = title(job);
  $('status').textContent = status(job);
  $('status').className = job.state;
  $('running').hidden = ENDED.includes(job.state);
  $('progress').value = job.steps ? job.step / job.steps : 0;
  $('live').hidden = !(job.state === 'running' && job.frames);
  $('finished').hidden = job.state !== 'done';
  $('save').href = `/api/jobs/${job.id}/video.mp4`;
  figures(job);
  playSource(job);
}

function select(job) {
  events?.close();
  chosen = job;
  plot.set(null);
  const told = (news) => {
    const fresh = news.frames !== chosen.frames || news.seconds !== chosen.seconds;
    const ended = news.state !== chosen.state;
    chosen = news;
    jobs.set(news.id, news);
    render(news);
    if (fresh || ended) curves(news);
    if (ended) history();
  };
  render(job);
  curves(job);
  history();
  if (ENDED.includes(job.state)) return;
  events = new EventSource(`/api/jobs/${job.id}/events`);
  events.onmessage = (message) => {
    const news = JSON.parse(message.data);
    if (ENDED.includes(news.state)) events.close();
    told(news);
  };
}

// --- the history ---

function card(job) {
  const item = document.createElement('li');
  const button = document.createElement('button');
  button.className = 'card';
  button.type = 'button';
  button.setAttribute('aria-current', chosen?.id === job.id);
  const picture = document.createElement(job.state === 'done' ? 'video' : 'div');
  if (job.state === 'done') {
    picture.muted = true;
    picture.preload = 'metadata';
    picture.src = `/api/jobs/${job.id}/video.mp4#t=0.5`;
  } else {
    picture.className = 'blank';
    picture.textContent = job.state;
  }
  const name = document.createElement('span');
  name.textContent = title(job);
  const small = document.createElement('small');
  const time = new Date(job.created * 1000);
  small.textContent = time.toLocaleTimeString([], { timeStyle: 'short' })
    + (job.seconds ? ` · ${job.seconds.toFixed(1)} s` : '');
  button.append(picture, name, small);
  button.addEventListener('click', () => select(jobs.get(job.id)));
  item.append(button);
  if (ENDED.includes(job.state)) item.append(bin(job));
  return item;
}

function bin(job) {
  const button = document.createElement('button');
  button.className = 'bin';
  button.type = 'button';
  button.textContent = '×';
  button.setAttribute('aria-label', `Throw away ${title(job)}`);
  button.addEventListener('click', async () => {
    await ask(`/api/jobs/${job.id}`, { method: 'DELETE' }).catch(complain);
    jobs.delete(job.id);
    if (chosen?.id === job.id) {
      chosen = null;
      $('video').removeAttribute('src');
      $('show').hidden = true;
      $('empty').hidden = false;
    }
    history();
  });
  return button;
}

function history() {
  $('history-title').hidden = !jobs.size;
  $('history').replaceChildren(...[...jobs.values()].map(card));
}

// --- the start ---

async function refresh() {
  facts = { ...facts, ...(await ask('/api/settings')) };
  const about = `${facts.size} × ${facts.size} pixels, 25 a second`;
  $('model').textContent = facts.ready ? about : `${about}; warming up…`;
  if (!facts.ready) setTimeout(() => refresh().catch(complain), 1000);
}

function listen() {
  $('form').addEventListener('submit', make);
  $('form').addEventListener('input', tellValues);
  for (const name of ['words', 'record', 'file']) {
    $(`tab-${name}`).addEventListener('click', () => show(name));
    $(`tab-${name}`).addEventListener('keydown', (event) => {
      const names = ['words', 'record', 'file'];
      const step = { ArrowRight: 1, ArrowLeft: 2 }[event.key];
      if (!step) return;
      const next = names[(names.indexOf(name) + step) % 3];
      show(next);
      $(`tab-${next}`).focus();
    });
  }
  takesFiles('drop-audio', $('audio'), (file) => {
    $('audio-name').textContent = file.name;
    play($('chosen'), file);
  });
  takesFiles('drop-image', $('image'), (file) => {
    play($('portrait'), file);
    $('plus').hidden = true;
    face('image');
  });
  document.querySelector('[name=face][value=image]')
    .addEventListener('click', () => $('image').click());
  $('mic').addEventListener('click', toggleMic);
  $('write').addEventListener('click', write);
  $('dice').addEventListener('click', () => {
    $('seed').value = Math.floor(Math.random() * facts.seeds);
  });
  $('again').addEventListener('click', reuse);
  $('cancel').addEventListener('click', () =>
    ask(`/api/jobs/${chosen.id}`, { method: 'DELETE' }).catch(complain));
}

async function start() {
  listen();
  await refresh();
  fillForm();
  const { jobs: own } = await ask('/api/jobs');
  jobs = new Map(own.map((job) => [job.id, job]));
  if (own.length) select(own[0]);
}

start().catch(complain);
