// Recording from the microphone, with its loudness.

export class Recorder {
  // `show(seconds, loudness)` while it records; `done(blob)` at the end.
  constructor(show, done) {
    this.show = show;
    this.done = done;
    this.recorder = null;
  }

  get active() {
    return this.recorder?.state === 'recording';
  }

  async start(seconds) {
    const stream = await navigator.mediaDevices.getUserMedia({ audio: true });
    const context = new AudioContext();
    const analyser = context.createAnalyser();
    context.createMediaStreamSource(stream).connect(analyser);
    const samples = new Float32Array(analyser.fftSize);
    const parts = [];
    this.recorder = new MediaRecorder(stream);
    this.recorder.addEventListener('dataavailable', (e) => parts.push(e.data));
    this.recorder.addEventListener('stop', () => {
      clearInterval(timer);
      stream.getTracks().forEach((track) => track.stop());
      context.close();
      this.done(new Blob(parts, { type: this.recorder.mimeType }));
    });
    const begun = performance.now();
    const timer = setInterval(() => {
      analyser.getFloatTimeDomainData(samples);
      const loud = Math.max(...samples.map(Math.abs));
      const time = (performance.now() - begun) / 1000;
      this.show(time, loud);
      if (time > seconds) this.stop();
    }, 100);
    this.recorder.start();
  }

  stop() {
    if (this.active) this.recorder.stop();
  }
}
