for (const box of document.querySelectorAll(".controls input")) {
  box.addEventListener("change", () => {
    const on = box.dataset.off ? !box.checked : box.checked;
    document.body.classList.toggle(box.dataset.class, on);
  });
}
// A case opens in full size by a click or Enter, and closes by a click or Escape.
const dialog = document.querySelector("dialog");
const show = figure => {
  dialog.replaceChildren(...[...figure.children].map(child => child.cloneNode(true)));
  dialog.showModal();
};
for (const figure of document.querySelectorAll(".case")) {
  figure.querySelector("svg").addEventListener("click", () => show(figure));
  figure.querySelector("svg").addEventListener("keydown", event => {
    if (event.key === "Enter") show(figure);
  });
}
dialog.addEventListener("click", () => dialog.close());
