"use strict";
// A bar moves through stops: pictures show the last one that is not after the stop, charts a line
// there and the values at it.
const read = (element) => JSON.parse(element.querySelector("script").textContent);
const lastAt = (places, stop) => {
  let found = 0;
  places.forEach((place, i) => { if (place <= stop) found = i; });
  return found;
};
const words = (value) => String(Number(value.toPrecision(4)));

const frames = (figure, told) => {
  const images = [...figure.querySelectorAll("img")];
  const places = images.map((image) => Number(image.dataset.at));
  const output = figure.querySelector("output");
  return (stop) => {
    const shown = lastAt(places, stop);
    images.forEach((image, i) => { image.hidden = i !== shown; });
    if (output) output.textContent = told(places[shown]);
  };
};

const chart = (figure, move) => {
  const { span: [low, high], curves } = read(figure);
  const plot = figure.querySelector(".plot");
  const cursor = figure.querySelector(".cursor");
  const outputs = [...figure.querySelectorAll("output")];
  const follow = (event) => {
    const box = plot.getBoundingClientRect();
    move(low + ((event.clientX - box.left) / box.width) * (high - low));
  };
  plot.addEventListener("pointermove", follow);
  plot.addEventListener("pointerdown", follow);
  return (stop) => {
    cursor.style.left = `${(100 * (stop - low)) / (high - low)}%`;
    cursor.style.visibility = "visible";
    curves.forEach(([places, values], i) => {
      const before = places.length === 0 || places[0] > stop;
      outputs[i].textContent = before ? "–" : words(values[lastAt(places, stop)]);
    });
  };
};

for (const bar of document.querySelectorAll("[data-scrub]")) {
  const of = bar.dataset.scrub;
  const { stops, plays, unit, loops } = read(bar);
  const told = (stop) => `${unit} ${(stop + (loops ? 1 : 0)).toLocaleString("en")}`;
  const input = bar.querySelector("input");
  const button = bar.querySelector("button");
  const output = bar.querySelector("output");
  let timer = null;
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const followers = [];
  const show = () => {
    const stop = stops[input.value];
    output.textContent = told(stop);
    input.setAttribute("aria-valuetext", told(stop));
    followers.forEach((follower) => follower(stop));
  };
  const move = (place) => {
    pause();
    let nearest = 0;
    stops.forEach((stop, i) => {
      if (Math.abs(stop - place) < Math.abs(stops[nearest] - place)) nearest = i;
    });
    input.value = nearest;
    show();
  };
  for (const figure of document.querySelectorAll(`.frames[data-of="${of}"]`)) {
    followers.push(frames(figure, told));
  }
  if (of === "time") {
    for (const figure of document.querySelectorAll("[data-follows]")) {
      followers.push(chart(figure, move));
    }
  }
  input.addEventListener("input", () => { pause(); show(); });
  button.addEventListener("click", () => {
    if (timer !== null) return pause();
    button.textContent = "Pause";
    let next = plays.findIndex((at) => at > Number(input.value));
    if (next < 0) next = 0;
    timer = setInterval(() => {
      if (next >= plays.length) {
        if (!loops) return pause();
        next = 0;
      }
      input.value = plays[next++];
      show();
    }, loops ? 120 : 220);
  });
  bar.hidden = false;
  show();
}
