(() => {
  "use strict";
  const data = JSON.parse(document.getElementById("frames").textContent);
  const player = document.querySelector(".player");
  const image = player.querySelector("img");
  const controls = player.querySelector(".controls");
  const button = controls.querySelector("button");
  const slider = controls.querySelector("input");
  const label = controls.querySelector("output");
  const last = data.frames.length - 1;
  const sources = data.frames.map((frame) => "data:image/png;base64," + frame);
  // Decoded ahead, so that the first round does not flicker.
  const kept = sources.map((source) => { const ahead = new Image(); ahead.src = source; return ahead; });
  let timer = null;

  const show = (index) => {
    image.src = kept[index].src;
    slider.value = String(index);
    label.textContent = data.labels[index];
    slider.setAttribute("aria-valuetext", data.labels[index]);
  };
  const pause = () => {
    clearInterval(timer);
    timer = null;
    button.textContent = "Play";
  };
  const play = () => {
    if (Number(slider.value) === last) show(0);
    button.textContent = "Pause";
    timer = setInterval(() => {
      const next = Number(slider.value) + 1;
      show(Math.min(next, last));
      if (next >= last) pause();
    }, 180);
  };

  slider.max = String(last);
  button.addEventListener("click", () => (timer === null ? play() : pause()));
  slider.addEventListener("input", () => { pause(); show(Number(slider.value)); });
  show(last);
  controls.hidden = false;
})();
