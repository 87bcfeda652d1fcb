// What the page does in the browser: the canvas, the slider of steps, the copy button. Nothing here is fetched.
"use strict";
window.studio = (() => {
  const boards = {}, busy = {};
  let stops = 0;

  // Of every sum of structures their colours, as red, green, blue, alpha.
  function coloured(colours) {
    const parts = colours.map((one) => [...[1, 3, 5].map((i) => parseInt(one.slice(i, i + 2), 16)), 255]);
    return Array.from({ length: 256 }, (_, label) => parts.filter((_, k) => label >> k & 1));
  }

  class Board {
    // labels: of each pixel the sum of 2^k over its structures. wet: what is being drawn, and not yet in them.
    constructor(root, events) {
      Object.assign(this, { root, events, tool: "brush", past: [], file: null, image: null, corner: null, structure: 0, keep: false });
      this.canvas = root.querySelector("canvas");
      this.paper = this.canvas.getContext("2d");
      this.wet = document.createElement("canvas").getContext("2d", { willReadFrequently: true });
      this.colours = coloured(this.canvas.dataset.colours.split(" "));
      this.count = this.canvas.dataset.colours.split(" ").length;
      this.shape(this.canvas.width, this.canvas.height);
      this.width = Number(root.querySelector("[data-do=width]").value);
      root.querySelectorAll("[data-tool]").forEach((one) => { one.onclick = () => this.choose(one.dataset.tool); });
      root.querySelectorAll("[data-structure]").forEach((one) => { one.onclick = () => this.take(Number(one.dataset.structure)); });
      root.querySelectorAll("[data-do=keep]").forEach((one) => { one.onchange = () => { this.keep = one.checked; }; });
      root.querySelector("[data-do=undo]").onclick = () => this.undo();
      root.querySelector("[data-do=clear]").onclick = () => this.edit(() => this.labels.fill(0));
      root.querySelector("[data-do=width]").oninput = (event) => { this.width = Number(event.target.value); this.show(); };
      root.querySelectorAll("[data-open]").forEach((one) => { one.onchange = () => this.open(one); });
      this.canvas.onpointerdown = (event) => this.down(event);
      this.canvas.onpointermove = (event) => this.move(event);
      this.canvas.onpointerup = this.canvas.onpointercancel = () => this.up();
      this.canvas.onkeydown = (event) => this.key(event);
      this.canvas.onfocus = () => this.show();
      this.canvas.onblur = () => { root.querySelector(".pen").hidden = true; };
    }

    // Another size, in which each pixel comes from the nearest one.
    shape(width, height) {
      const old = this.labels, [w, h] = [this.canvas.width, this.canvas.height];
      if (old && w === width && h === height) return;
      this.labels = new Uint8Array(width * height);
      for (let i = 0; old && i < this.labels.length; i += 1) {
        const x = Math.floor((((i % width) + 0.5) * w) / width), y = Math.floor(((Math.floor(i / width) + 0.5) * h) / height);
        this.labels[i] = old[y * w + x];
      }
      for (const one of [this.canvas, this.wet.canvas]) [one.width, one.height] = [width, height];
      this.root.querySelector(".board").style.setProperty("--ratio", width / height);
      this.pen = { x: width / 2, y: height / 2 };
      this.past = [];
      this.render();
    }

    take(structure) {
      this.structure = structure;
      this.root.querySelectorAll("[data-structure]").forEach((one, k) => one.setAttribute("aria-checked", k === structure));
    }

    choose(tool) {
      this.tool = tool;
      this.corner = null;
      this.root.querySelectorAll("[data-tool]").forEach((one) => one.setAttribute("aria-pressed", one.dataset.tool === tool));
    }

    place(event) {
      const box = this.canvas.getBoundingClientRect();
      const part = [(event.clientX - box.left) / box.width, (event.clientY - box.top) / box.height];
      return { x: part[0] * this.canvas.width, y: part[1] * this.canvas.height };
    }

    down(event) {
      if (event.button) return;
      this.canvas.setPointerCapture(event.pointerId);
      this.remember();
      this.wipe();
      this.pen = this.last = this.first = this.place(event);
      this.mark(this.pen);
    }

    move(event) {
      if (!this.last) return;
      this.pen = this.place(event);
      this.mark(this.pen);
    }

    up() {
      if (!this.last) return;
      this.last = null;
      this.settle();
      this.events.stroke();
    }

    // One movement of the pen: a line, or the ellipse from the first corner to here in place of the one before.
    mark(to) {
      if (this.tool === "ellipse") {
        this.wipe();
        this.ellipse(this.first, to);
      } else this.line(this.last, to);
      this.last = to;
      this.render();
    }

    line(from, to) {
      this.wet.lineWidth = this.width;
      this.wet.lineCap = this.wet.lineJoin = "round";
      this.wet.beginPath();
      this.wet.moveTo(from.x, from.y);
      this.wet.lineTo(to.x + 1e-3, to.y);
      this.wet.stroke();
    }

    ellipse(a, b) {
      this.wet.beginPath();
      this.wet.ellipse((a.x + b.x) / 2, (a.y + b.y) / 2, Math.abs(a.x - b.x) / 2, Math.abs(a.y - b.y) / 2, 0, 0, 7);
      this.wet.fill();
    }

    key(event) {
      const step = event.shiftKey ? 8 : 1;
      const ways = { ArrowLeft: [-step, 0], ArrowRight: [step, 0], ArrowUp: [0, -step], ArrowDown: [0, step] };
      if ((event.ctrlKey || event.metaKey) && event.key.toLowerCase() === "z") this.undo();
      else if (event.key in ways) {
        const [x, y] = ways[event.key];
        this.pen = { x: Math.min(Math.max(this.pen.x + x, 0), this.canvas.width), y: Math.min(Math.max(this.pen.y + y, 0), this.canvas.height) };
      } else if (event.key === " ") this.press();
      else return;
      event.preventDefault();
      this.show();
    }

    // Space: a dot of the brush or the eraser; of an ellipse the first corner, then the second.
    press() {
      if (this.tool === "ellipse" && !this.corner) {
        this.corner = { ...this.pen };
        return;
      }
      this.edit(() => (this.tool === "ellipse" ? this.ellipse(this.corner, this.pen) : this.line(this.pen, this.pen)));
      this.corner = null;
    }

    show() {
      const pen = this.root.querySelector(".pen");
      const across = this.canvas.getBoundingClientRect().width / this.canvas.width;
      pen.hidden = document.activeElement !== this.canvas;
      Object.assign(pen.style, { left: `${this.pen.x * across}px`, top: `${this.pen.y * across}px`, width: `${this.width * across}px` });
    }

    wipe() {
      this.wet.clearRect(0, 0, this.canvas.width, this.canvas.height);
    }

    // The labels with what is being drawn. A mask has no soft edges: a pixel is drawn or it is not.
    merged() {
      const drawn = this.wet.getImageData(0, 0, this.canvas.width, this.canvas.height).data, bit = 1 << this.structure;
      const become = (label) => (this.tool === "eraser" ? 0 : this.keep ? label | bit : bit);
      return this.labels.map((label, i) => (drawn[4 * i + 3] > 127 ? become(label) : label));
    }

    // Where structures overlap there are stripes, so that both are seen.
    render() {
      const width = this.canvas.width, image = this.paper.createImageData(width, this.canvas.height);
      this.merged().forEach((label, i) => {
        const colours = this.colours[label], stripe = ((i % width) + Math.floor(i / width)) >> 1;
        if (colours.length) image.data.set(colours[stripe % colours.length], 4 * i);
      });
      this.paper.putImageData(image, 0, 0);
    }

    settle() {
      this.labels = this.merged();
      this.wipe();
      this.render();
    }

    remember() {
      this.past.push(this.labels.slice());
      this.past.splice(0, this.past.length - 50);
    }

    edit(change) {
      this.remember();
      this.wipe();
      change();
      this.settle();
      this.events.stroke();
    }

    undo() {
      if (!this.past.length) return;
      this.labels = this.past.pop();
      this.render();
      this.events.stroke();
    }

    // A file is read here and sent as text; of one that is too large the size alone, for a sentence.
    open(input) {
      const file = input.files[0], reader = new FileReader();
      if (!file) return;
      reader.onload = () => {
        this.file = { kind: input.dataset.open, name: file.name, size: file.size, data: reader.result };
        this.events.open();
        input.value = "";
      };
      reader.readAsDataURL(file.size > Number(this.root.dataset.most) ? file.slice(0, 1) : file);
    }

    // What the server is told: sums of 2^k as grey levels, of one structure white on black; and the name of the image behind.
    read() {
      const copy = document.createElement("canvas"), image = this.paper.createImageData(this.canvas.width, this.canvas.height);
      [copy.width, copy.height] = [this.canvas.width, this.canvas.height];
      const white = this.count === 1 ? 255 : 1;
      this.labels.forEach((label, i) => image.data.set([...Array(3).fill(label * white), 255], 4 * i));
      copy.getContext("2d").putImageData(image, 0, 0);
      const told = { mask: copy.toDataURL("image/png"), image: this.image, file: this.file };
      this.file = null;
      return JSON.stringify(told);
    }

    // What the server answers: a size, a mask, an image behind, an outline above.
    write(told) {
      if (told.image) this.image = told.image;
      for (const [name, url] of [[".ground", told.background], [".target", told.outline]]) {
        if (url !== undefined) Object.assign(this.root.querySelector(name), { src: url, hidden: !url });
      }
      if (told.size) this.shape(...told.size);
      if (told.size && !told.mask) this.events.stroke();
      if (!told.mask) return;
      const picture = new Image(), white = this.count === 1 ? 255 : 1;
      picture.onload = () => this.edit(() => {
        const copy = document.createElement("canvas").getContext("2d");
        [copy.canvas.width, copy.canvas.height] = [this.canvas.width, this.canvas.height];
        copy.drawImage(picture, 0, 0);
        const levels = copy.getImageData(0, 0, this.canvas.width, this.canvas.height).data;
        this.labels = this.labels.map((_, i) => levels[4 * i] / white);
      });
      picture.src = told.mask;
    }
  }

  return {
    canvas(element, events) {
      const root = element.querySelector(".studio-canvas");
      boards[root.id] = new Board(root, events);
    },
    // What is sent to the server: of a room with a canvas the first value is what that holds.
    filled: (name, values) => (name ? [boards[name].read(), ...values.slice(1)] : values),
    // A request is sent with the stops before it, so that one after a stop is none of those that it ends. A second press
    // of a button whose request is under way asks for nothing: -1 is before every stop.
    press(button) {
      const sent = busy[button] === stops ? -1 : stops;
      busy[button] = stops;
      return sent;
    },
    done: (button) => { delete busy[button]; },
    stop: () => ++stops,
    write: (name, text) => boards[name].write(JSON.parse(text || "{}")),
    copy(button) {
      const said = button.textContent;
      navigator.clipboard.writeText(button.dataset.copy).then(() => { button.textContent = "Copied"; });
      setTimeout(() => { button.textContent = said; }, 1500);
    },
    frame(input) {
      const steps = input.closest(".steps"), place = Number(input.value) - 1;
      steps.querySelectorAll(".frames").forEach((frames) => [...frames.children].forEach((one, i) => { one.hidden = i !== place; }));
      const [step, t] = steps.querySelectorAll("output");
      [step.textContent, t.textContent] = [input.value, steps.querySelectorAll("img")[place].dataset.t];
    },
  };
})();
