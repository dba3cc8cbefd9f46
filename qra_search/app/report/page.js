// Buttons that copy a command, and a print of everything. Without this script the page is complete.
"use strict";
(() => {
  for (const box of document.querySelectorAll(".cmd")) {
    const button = document.createElement("button");
    button.type = "button";
    button.textContent = "Copy";
    button.addEventListener("click", async () => {
      const code = box.querySelector("code");
      try {
        await navigator.clipboard.writeText(code.textContent);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(code);
        button.textContent = "Selected";
      }
      setTimeout(() => { button.textContent = "Copy"; }, 1500);
    });
    box.append(button);
  }
  addEventListener("beforeprint", () => { for (const more of document.querySelectorAll("details")) more.open = true; });
})();
