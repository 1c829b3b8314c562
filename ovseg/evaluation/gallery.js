for (const box of document.querySelectorAll(".controls input")) {
  box.addEventListener("change", () => {
    const on = box.dataset.off ? !box.checked : box.checked;
    document.body.classList.toggle(box.dataset.class, on);
  });
}
// A case opens in full size by its button, and closes by a click, Enter or Escape.
const dialog = document.querySelector("dialog");
for (const figure of document.querySelectorAll(".case")) {
  figure.querySelector("button").addEventListener("click", () => {
    dialog.replaceChildren(...[...figure.children].map(child => child.cloneNode(true)));
    dialog.querySelector("button").ariaLabel = "Close";
    dialog.showModal();
  });
}
dialog.addEventListener("click", () => dialog.close());
