// Names and keys for readers who use neither eyes nor a mouse, where the theme gives none.
const name = () => {
  document.querySelector(".md-search")?.setAttribute("aria-label", "search");
  document.querySelector(".md-search__options")?.setAttribute("aria-label", "search options");
  document.querySelectorAll(".md-code__nav").forEach((nav, i) => {
    if (!nav.hasAttribute("aria-label")) nav.setAttribute("aria-label", `code ${i + 1}`);
  });
  for (const box of document.querySelectorAll(".md-typeset__scrollwrap"))
    box.tabIndex = box.scrollWidth > box.clientWidth ? 0 : -1;
};
addEventListener("DOMContentLoaded", () => {
  name();
  new MutationObserver(name).observe(document.body, { childList: true, subtree: true });
});
addEventListener("resize", name);
