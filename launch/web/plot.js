// Waveform and mouth curve on one clock, with what plays now marked.

const css = (name) =>
  getComputedStyle(document.documentElement).getPropertyValue(name).trim();

export class Plot {
  constructor(canvas, video) {
    this.canvas = canvas;
    this.video = video;
    this.curves = null;
    canvas.addEventListener('click', (event) => this.seek(event));
    new ResizeObserver(() => this.draw()).observe(canvas);
    matchMedia('(prefers-color-scheme: dark)').addEventListener('change', () =>
      this.draw());
    const follow = () => {
      if (!video.paused) this.draw();
      requestAnimationFrame(follow);
    };
    follow();
    video.addEventListener('seeked', () => this.draw());
  }

  set(curves) {
    this.curves = curves;
    this.draw();
  }

  seek(event) {
    if (!this.curves?.seconds) return;
    const box = this.canvas.getBoundingClientRect();
    const time = ((event.clientX - box.left) / box.width) * this.curves.seconds;
    this.video.currentTime = Math.min(time, this.video.duration || time);
  }

  draw() {
    const { canvas } = this;
    const scale = devicePixelRatio || 1;
    const width = canvas.clientWidth;
    const height = canvas.clientHeight;
    canvas.width = width * scale;
    canvas.height = height * scale;
    const g = canvas.getContext('2d');
    g.scale(scale, scale);
    if (!this.curves?.seconds) return;
    const middle = height * 0.42;
    this.grid(g, width, height);
    this.wave(g, width, middle);
    this.mouth(g, width, middle + 10, height - 18);
    const at = (this.video.currentTime / this.curves.seconds) * width;
    if (this.video.readyState && at <= width) {
      g.fillStyle = css('--ink');
      g.fillRect(Math.min(at, width - 1.5), 0, 1.5, height - 16);
    }
  }

  grid(g, width, height) {
    const { seconds } = this.curves;
    const step = [0.5, 1, 2, 5, 10, 20, 60].find((s) => seconds / s <= 9) ?? 60;
    g.font = '11px system-ui, sans-serif';
    for (let time = 0; time <= seconds; time += step) {
      const x = (time / seconds) * width;
      g.fillStyle = css('--line');
      g.fillRect(x, 0, 1, height - 16);
      g.fillStyle = css('--soft');
      g.fillText(`${+time.toFixed(1)} s`, Math.min(x + 3, width - 26), height - 4);
    }
  }

  wave(g, width, height) {
    const { wave } = this.curves;
    const peak = Math.max(0.02, ...wave.flat().map(Math.abs));
    const y = (value) => height / 2 - (value / peak) * (height / 2 - 3);
    g.fillStyle = css('--wave');
    const column = width / wave.length;
    wave.forEach(([low, high], n) => {
      g.fillRect(n * column, y(high), column, Math.max(y(low) - y(high), 1));
    });
  }

  // One point a frame; a frame without a face leaves a gap.
  mouth(g, width, top, bottom) {
    const { mouth, seconds, fps, frames } = this.curves;
    const most = Math.max(0.05, ...mouth.filter((value) => value !== null));
    const x = (n) => ((n + 0.5) / fps / seconds) * width;
    g.strokeStyle = css('--made');
    g.lineWidth = 2;
    g.lineJoin = 'round';
    g.beginPath();
    let pen = false;
    mouth.forEach((value, n) => {
      if (value !== null) {
        const y = bottom - (Math.max(value, 0) / most) * (bottom - top);
        if (pen) g.lineTo(x(n), y);
        else g.moveTo(x(n), y);
      }
      pen = value !== null;
    });
    g.stroke();
    const made = (frames / fps / seconds) * width;
    if (made < width - 1) {
      g.fillStyle = css('--line');
      g.globalAlpha = 0.35;
      g.fillRect(made, 0, width - made, bottom + 2);
      g.globalAlpha = 1;
    }
  }
}
