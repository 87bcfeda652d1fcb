// What the page does in the browser: the canvas, the slider of steps, the copy button. Nothing here is fetched.
"use strict";
window.studio = (() => {
  const boards = {}, busy = {};
  let stops = 0;

  class Board {
    constructor(root, events) {
      Object.assign(this, { root, events, tool: "brush", past: [], file: null, image: null, corner: null });
      this.canvas = root.querySelector("canvas");
      this.paper = this.canvas.getContext("2d", { willReadFrequently: true });
      this.width = Number(root.querySelector("[data-do=width]").value);
      this.pen = { x: this.canvas.width / 2, y: this.canvas.height / 2 };
      root.querySelectorAll("[data-tool]").forEach((one) => { one.onclick = () => this.choose(one.dataset.tool); });
      root.querySelector("[data-do=undo]").onclick = () => this.undo();
      root.querySelector("[data-do=clear]").onclick = () => this.edit(() => this.paper.clearRect(0, 0, 1e5, 1e5));
      root.querySelector("[data-do=width]").oninput = (event) => { this.width = Number(event.target.value); this.show(); };
      root.querySelectorAll("[data-open]").forEach((one) => { one.onchange = () => this.open(one); });
      this.canvas.onpointerdown = (event) => this.down(event);
      this.canvas.onpointermove = (event) => this.move(event);
      this.canvas.onpointerup = this.canvas.onpointercancel = () => this.up();
      this.canvas.onkeydown = (event) => this.key(event);
      this.canvas.onfocus = () => this.show();
      this.canvas.onblur = () => { root.querySelector(".pen").hidden = true; };
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
      this.sharpen();
      this.events.stroke();
    }

    // One movement of the pen: a line, or the ellipse from the first corner to here, over what was there before.
    mark(to) {
      if (this.tool === "ellipse") {
        this.paper.putImageData(this.past[this.past.length - 1], 0, 0);
        this.ellipse(this.first, to);
        return;
      }
      this.line(this.last, to);
      this.last = to;
    }

    line(from, to) {
      const paper = this.paper;
      paper.globalCompositeOperation = this.tool === "eraser" ? "destination-out" : "source-over";
      paper.strokeStyle = "#ffb000";
      paper.lineWidth = this.width;
      paper.lineCap = paper.lineJoin = "round";
      paper.beginPath();
      paper.moveTo(from.x, from.y);
      paper.lineTo(to.x + 1e-3, to.y);
      paper.stroke();
      paper.globalCompositeOperation = "source-over";
    }

    ellipse(a, b) {
      this.paper.fillStyle = "#ffb000";
      this.paper.beginPath();
      this.paper.ellipse((a.x + b.x) / 2, (a.y + b.y) / 2, Math.abs(a.x - b.x) / 2, Math.abs(a.y - b.y) / 2, 0, 0, 7);
      this.paper.fill();
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

    pixels() {
      return this.paper.getImageData(0, 0, this.canvas.width, this.canvas.height);
    }

    remember() {
      this.past.push(this.pixels());
      this.past.splice(0, this.past.length - 50);
    }

    edit(change) {
      this.remember();
      change();
      this.sharpen();
      this.events.stroke();
    }

    undo() {
      if (!this.past.length) return;
      this.paper.putImageData(this.past.pop(), 0, 0);
      this.events.stroke();
    }

    // A mask has no soft edges: a pixel is drawn or it is not.
    sharpen() {
      const image = this.pixels();
      for (let i = 0; i < image.data.length; i += 4) image.data.set(image.data[i + 3] > 127 ? [255, 176, 0, 255] : [0, 0, 0, 0], i);
      this.paper.putImageData(image, 0, 0);
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

    // What the server is told: white on black, and the name of the image behind.
    read() {
      const copy = document.createElement("canvas"), image = this.pixels();
      [copy.width, copy.height] = [this.canvas.width, this.canvas.height];
      for (let i = 0; i < image.data.length; i += 4) image.data.set([...Array(3).fill(image.data[i + 3]), 255], i);
      copy.getContext("2d").putImageData(image, 0, 0);
      const told = { mask: copy.toDataURL("image/png"), image: this.image, file: this.file };
      this.file = null;
      return JSON.stringify(told);
    }

    // What the server answers: a mask, an image behind, an outline above.
    write(told) {
      if (told.image) this.image = told.image;
      for (const [name, url] of [[".ground", told.background], [".target", told.outline]]) {
        if (url !== undefined) Object.assign(this.root.querySelector(name), { src: url, hidden: !url });
      }
      if (!told.mask) return;
      const picture = new Image();
      picture.onload = () => this.edit(() => {
        this.paper.clearRect(0, 0, 1e5, 1e5);
        this.paper.drawImage(picture, 0, 0);
        const image = this.pixels();
        for (let i = 0; i < image.data.length; i += 4) image.data[i + 3] = image.data[i];
        this.paper.putImageData(image, 0, 0);
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
