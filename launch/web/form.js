// The form: what it says, who says it, how it is sampled.

import { Recorder } from './sound.js';
import { $, ask, complain } from './server.js';

const TABS = ['words', 'record', 'file'];
const NAMES = {
  audio_cfg: 'the sound',
  reference_cfg: 'the face',
  text_cfg: 'the text',
  joint_cfg: 'all of it',
};
const CHOICES = {
  constant: 'the same at every step',
  cosine: 'strong first, none at the end',
  'window:0.95:0.3': 'in the middle alone',
  none: 'nothing: compute every step',
  fast: 'from step to step: faster',
};
const FIELDS = [
  'text', 'negative_text', 'steps', 'solver', 'guidance_schedule',
  'guidance_rescale', 'cache', 'seed',
];
const bytes = (text) => new TextEncoder().encode(text).length;

function play(player, blob) {
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(blob);
  player.hidden = false;
}

function pickFace(name) {
  document.querySelector(`[name=face][value=${name}]`).checked = true;
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

export class Form {
  // `made(job)` is called with each job that the form has made.
  constructor(made) {
    this.made = made;
    this.facts = null;
    this.tab = 'words';
    this.recording = null; // A Blob.
    this.recorder = new Recorder(
      (seconds, loud) => {
        $('clock').value = `${seconds.toFixed(1)} s`;
        $('level').value = loud;
      },
      (blob) => this.recorded(blob),
    );
    this.listen();
  }

  listen() {
    $('form').addEventListener('submit', (event) => this.make(event));
    $('form').addEventListener('input', () => this.tell());
    TABS.forEach((name, n) => {
      $(`tab-${name}`).addEventListener('click', () => this.show(name));
      $(`tab-${name}`).addEventListener('keydown', (event) => {
        const step = { ArrowRight: 1, ArrowLeft: 2 }[event.key];
        if (!step) return;
        const next = TABS[(n + step) % 3];
        this.show(next);
        $(`tab-${next}`).focus();
      });
    });
    takesFiles('drop-audio', $('audio'), (file) => {
      $('audio-name').textContent = file.name;
      play($('chosen'), file);
    });
    takesFiles('drop-image', $('image'), (file) => {
      play($('portrait'), file);
      $('plus').hidden = true;
      pickFace('image');
    });
    document.querySelector('[name=face][value=image]')
      .addEventListener('click', () => $('image').click());
    $('mic').addEventListener('click', () => this.toggleMic());
    $('write').addEventListener('click', () => this.write());
    $('dice').addEventListener('click', () => {
      $('seed').value = Math.floor(Math.random() * this.facts.seeds);
    });
  }

  // Draws what depends on the model.
  fill(facts) {
    this.facts = facts;
    facts.weights.forEach((weight) => this.slider(weight));
    const options = (id, values) => values.forEach((value) =>
      $(id).add(new Option(CHOICES[value] ?? value, value)));
    options('solver', facts.solvers);
    options('guidance_schedule', facts.schedules);
    options('cache', facts.caches);
    $('steps').max = Math.min(facts.limits.steps, 64);
    $('steps').value = facts.steps;
    $('most').textContent = facts.text_length;
    $('prompt-row').hidden = !facts.text_length;
    $('negative_text').hidden = !facts.weights.length;
    $('shipped').hidden = !facts.has_face;
    $('writer').hidden = !facts.writes;
    pickFace(facts.has_face ? 'shipped' : 'none');
    this.tell();
  }

  slider(weight) {
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

  // Values beside sliders, letters and bytes below texts.
  tell() {
    for (const input of document.querySelectorAll('input[type=range]')) {
      input.nextElementSibling.value = input.value;
    }
    const count = (id, number, most) => {
      $(id).textContent = number;
      $(id).parentNode.classList.toggle('over', number > most);
    };
    const { limits, text_length } = this.facts;
    count('letters', $('text_to_speech').value.length, limits.letters);
    count('bytes', bytes($('text').value), text_length);
  }

  show(name) {
    this.tab = name;
    for (const other of TABS) {
      $(other).hidden = other !== name;
      $(`tab-${other}`).setAttribute('aria-selected', other === name);
      $(`tab-${other}`).tabIndex = other === name ? 0 : -1;
    }
  }

  // The form's values; an Error says what is missing.
  collect() {
    const form = new FormData();
    if (this.tab === 'words') {
      form.set('text_to_speech', $('text_to_speech').value);
    }
    if (this.tab === 'record') {
      if (!this.recording) throw new Error('record something first');
      form.set('audio', this.recording, 'recording');
    }
    if (this.tab === 'file') {
      if (!$('audio').files.length) throw new Error('choose a sound first');
      form.set('audio', $('audio').files[0]);
    }
    const face = document.querySelector('[name=face]:checked').value;
    if (face === 'image') {
      if (!$('image').files.length) throw new Error('choose a picture first');
      form.set('image', $('image').files[0]);
    } else form.set('face', face);
    const weights = this.facts.weights.map((weight) => weight.name);
    for (const id of [...FIELDS, ...weights]) {
      if ($(id).value) form.set(id, $(id).value);
    }
    const counts = ['text_cfg', 'joint_cfg'].some((id) => $(id)?.value !== '1');
    if (form.has('negative_text') && !counts) {
      throw new Error('what is not to be seen has no effect while the weight '
        + 'of the text is 1; move its slider');
    }
    let size = 0;
    for (const value of form.values()) size += value.size ?? 0;
    if (size > this.facts.limits.upload_mb * 1e6) {
      throw new Error(`together they may have ${this.facts.limits.upload_mb} MB`);
    }
    return form;
  }

  async make(event) {
    event.preventDefault();
    await this.busy('make', async () => {
      const body = this.collect();
      this.made(await ask('/api/jobs', { method: 'POST', body }));
    });
  }

  async write() {
    await this.busy('write', async () => {
      const body = JSON.stringify({ request: $('request').value });
      const written = await ask('/api/script', { method: 'POST', body });
      $('text_to_speech').value = written.script;
      if (bytes(written.prompt) <= this.facts.text_length) {
        $('text').value = written.prompt;
      }
      this.tell();
    });
  }

  // A button cannot be pressed again before its work is done.
  async busy(button, work) {
    complain(null);
    $(button).disabled = true;
    try {
      await work();
    } catch (error) {
      complain(error);
    }
    $(button).disabled = false;
  }

  async toggleMic() {
    if (this.recorder.active) return this.recorder.stop();
    complain(null);
    try {
      await this.recorder.start(this.facts.limits.seconds - 0.5);
      $('mic').setAttribute('aria-pressed', 'true');
      $('mic-says').textContent = 'Stop';
    } catch {
      complain(
        new Error('the microphone cannot be used; allow it, or give a file'),
      );
    }
  }

  recorded(blob) {
    this.recording = blob;
    $('level').value = 0;
    $('mic').setAttribute('aria-pressed', 'false');
    $('mic-says').textContent = 'Record again';
    play($('recorded'), blob);
  }

  // Sets everything as it was for a job, but for its files.
  reuse(job) {
    for (const [name, value] of Object.entries(job.about)) {
      if ($(name)?.matches('input:not([type=file]), select, textarea')) {
        $(name).value = value;
      }
    }
    $('negative_text').value = job.about.negative_text ?? '';
    $('text').value = job.about.text ?? '';
    if (job.about.face) pickFace(job.about.face);
    if (job.about.text_to_speech) this.show('words');
    this.tell();
  }
}
