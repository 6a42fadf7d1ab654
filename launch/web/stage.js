// The stage: one job, its progress, its video beside waveform and mouth curve.

import { Plot } from './plot.js';
import { $, ask, complain, hasEnded, title } from './server.js';

const STAGES = ['compile', 'speech', 'sample', 'decode', 'mouth'];
const plain = (seconds) => `${seconds.toFixed(1)} s`;

function figures(job) {
  const rows = [];
  if (job.seconds) rows.push(['length', plain(job.seconds)]);
  if (job.first_frame !== null) {
    rows.push(['first frame after', plain(job.first_frame)]);
  }
  if (job.state === 'done') {
    rows.push(['work per second', plain(job.spent / job.seconds)]);
    for (const stage of STAGES) {
      if (job.took[stage] >= 0.1) rows.push([stage, plain(job.took[stage])]);
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

export class Stage {
  // `news(job)` is called whenever the job has ended; `ready()` tells whether
  // the model has warmed up.
  constructor(news, ready) {
    this.news = news;
    this.ready = ready;
    this.plot = new Plot($('plot'), $('video'));
    this.job = null; // As the server told it last.
    this.events = null;
    $('cancel').addEventListener('click', () =>
      ask(`/api/jobs/${this.job.id}`, { method: 'DELETE' }).catch(complain));
  }

  show(job) {
    this.events?.close();
    this.job = job;
    this.plot.set(null);
    this.render();
    this.curves();
    if (hasEnded(job)) return;
    this.events = new EventSource(`/api/jobs/${job.id}/events`);
    this.events.onmessage = (message) => this.hear(JSON.parse(message.data));
  }

  clear() {
    this.events?.close();
    this.job = null;
    $('video').removeAttribute('src');
    $('show').hidden = true;
    $('empty').hidden = false;
  }

  hear(job) {
    const before = this.job;
    this.job = job;
    if (hasEnded(job)) this.events.close();
    this.render();
    const changed = job.state !== before.state;
    const more = job.frames !== before.frames || job.seconds !== before.seconds;
    if (changed || more) this.curves();
    if (changed) this.news(job);
  }

  render() {
    const { job } = this;
    $('empty').hidden = true;
    $('show').hidden = false;
    $('title').textContent = title(job);
    $('status').textContent = this.status();
    $('status').className = job.state;
    $('running').hidden = hasEnded(job);
    $('progress').value = job.steps ? job.step / job.steps : 0;
    $('live').hidden = !(job.state === 'running' && job.frames);
    $('finished').hidden = job.state !== 'done';
    $('save').href = `/api/jobs/${job.id}/video.mp4`;
    figures(job);
    this.play();
  }

  status() {
    const { job } = this;
    if (job.state === 'queued') {
      return !this.ready() ? 'the model is warming up'
        : job.ahead ? `${job.ahead} before it` : 'next';
    }
    if (job.state === 'failed') return job.error;
    if (job.state === 'cancelled') return 'cancelled';
    if (job.state === 'done') return `done in ${plain(job.spent)}`;
    if (!job.steps) return 'listening';
    const left = job.left === null ? '' : `, about ${Math.ceil(job.left)} s left`;
    return `step ${job.step} of ${job.steps}${left}`;
  }

  // The live video while it grows, then the finished one from the same place.
  play() {
    const video = $('video');
    const wanted = source(this.job);
    const before = video.getAttribute('src') ?? '';
    if (before === wanted) return;
    if (!wanted) {
      video.removeAttribute('src');
      video.load();
      return;
    }
    const time = before.includes(this.job.id) ? video.currentTime : 0;
    video.src = wanted;
    video.addEventListener('loadedmetadata', () => {
      if (time && time < video.duration) video.currentTime = time;
    }, { once: true });
    // A browser may refuse to play sound by itself: then the user presses play.
    video.play().catch(() => this.plot.draw());
  }

  async curves() {
    const { job } = this;
    if (!job.seconds) return;
    try {
      const found = await ask(`/api/jobs/${job.id}/curves`);
      if (this.job?.id === job.id) this.plot.set(found);
    } catch (error) {
      complain(error);
    }
  }
}
