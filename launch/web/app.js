// The page: a form that makes jobs, a stage that shows one, a history of all.

import { Form } from './form.js';
import { $, ask, complain, hasEnded, title } from './server.js';
import { Stage } from './stage.js';

let facts = null;
let jobs = new Map(); // By their ids, the newest first; another one if changed.
const cards = new Map(); // By the same ids: they outlive a change of their job,
// else a press whose release comes after one would be no click.

const stage = new Stage(
  (job) => {
    jobs = new Map(jobs).set(job.id, job);
    history();
  },
  () => facts.ready,
);
const form = new Form((job) => {
  jobs = new Map([[job.id, job], ...jobs]);
  select(job);
  $('stage').scrollIntoView({ block: 'nearest', behavior: 'smooth' });
});

function select(job) {
  stage.show(job);
  history();
}

function history() {
  const list = $('history');
  $('history-title').hidden = !jobs.size;
  for (const [id, item] of cards) {
    if (jobs.has(id)) continue;
    item.remove();
    cards.delete(id);
  }
  [...jobs.values()].forEach((job, place) => {
    const item = card(job);
    const there = list.children[place];
    if (there !== item) list.insertBefore(item, there ?? null);
  });
}

function card(job) {
  if (!cards.has(job.id)) cards.set(job.id, emptyCard(job.id));
  const item = cards.get(job.id);
  const button = item.querySelector('.card');
  button.setAttribute('aria-current', stage.job?.id === job.id);
  const shows = JSON.stringify([job.state, job.seconds, title(job)]);
  if (item.dataset.shows === shows) return item;
  item.dataset.shows = shows;
  button.replaceChildren(...contents(job));
  if (hasEnded(job) && !item.querySelector('.bin')) item.append(bin(job));
  return item;
}

function emptyCard(id) {
  const item = document.createElement('li');
  const button = document.createElement('button');
  button.className = 'card';
  button.type = 'button';
  button.addEventListener('click', () => select(jobs.get(id)));
  item.append(button);
  return item;
}

function contents(job) {
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
  return [picture, name, small];
}

function bin(job) {
  const button = document.createElement('button');
  button.className = 'bin';
  button.type = 'button';
  button.textContent = '×';
  button.setAttribute('aria-label', `Throw away ${title(job)}`);
  button.addEventListener('click', async () => {
    await ask(`/api/jobs/${job.id}`, { method: 'DELETE' }).catch(complain);
    jobs = new Map([...jobs].filter(([id]) => id !== job.id));
    if (stage.job?.id === job.id) stage.clear();
    history();
  });
  return button;
}

// The stage hears of its own job; of others, the cards have to ask.
async function look() {
  const before = jobs;
  const waits = (job) => !hasEnded(job) && job.id !== stage.job?.id;
  if (![...jobs.values()].some(waits)) return;
  const { jobs: own } = await ask('/api/jobs');
  if (jobs !== before) return;
  const changed = own.some((job) => jobs.get(job.id)?.state !== job.state);
  jobs = byId(own);
  if (changed || own.length !== before.size) history();
}

const byId = (list) => new Map(list.map((job) => [job.id, job]));

async function refresh() {
  facts = await ask('/api/settings');
  const about = `${facts.size} × ${facts.size} pixels, 25 a second`;
  $('model').textContent = facts.ready ? about : `${about}; warming up…`;
  if (!facts.ready) setTimeout(() => refresh().catch(complain), 1000);
}

async function start() {
  $('again').addEventListener('click', () => form.reuse(stage.job));
  await refresh();
  form.fill(facts);
  $('no-lips').hidden = facts.measures_lips;
  const { jobs: own } = await ask('/api/jobs');
  jobs = byId(own);
  if (own.length) select(own[0]);
  setInterval(() => look().catch(complain), 2000);
}

start().catch(complain);
