/** The orders on the page, in one column for each status. The newest version of an order wins. */

const COLUMNS = {
  new: "New",
  baking: "In the oven",
  ready: "Ready",
  done: "Collected",
  cancelled: "Cancelled",
};
const STEPS = { new: "Into the oven", baking: "Ready", ready: "Collected" };

export class Orders {
  #cards = new Map(); // The id of an order -> its card.
  #lists = {};
  #isStaff;
  #request;

  /** @param {(type: string, data: object) => Promise<boolean>} request */
  constructor(board, isStaff, request) {
    this.#isStaff = isStaff;
    this.#request = request;
    for (const [status, title] of Object.entries(COLUMNS)) {
      const column = element("section", "column");
      const list = element("ul", "orders");
      column.dataset.status = list.dataset.status = status;
      list.setAttribute("aria-label", title);
      column.append(element("h2", "", title), list);
      board.append(column);
      this.#lists[status] = list;
    }
  }

  /** Show an order, unless the page shows the same version or a newer one. */
  show(order) {
    const before = this.#cards.get(order.id);
    if (before && Number(before.dataset.version) >= order.version) return;
    const card = this.#card(order);
    this.#cards.set(order.id, card);
    before?.remove();
    this.#lists[order.status].prepend(card);
  }

  #card(order) {
    const card = element("li", "order");
    card.dataset.version = order.version;
    card.append(element("strong", "", order.item), element("span", "number", `#${order.id}`));
    if (this.#isStaff) card.append(element("span", "customer", order.customer));
    if (this.#isStaff && order.status in STEPS) card.append(this.#button(STEPS[order.status], "advance", order));
    if (!this.#isStaff && order.status === "new") card.append(this.#button("Cancel", "cancel", order));
    return card;
  }

  #button(text, type, { id, version }) {
    const button = element("button", "quiet", text);
    button.addEventListener("click", async () => {
      button.disabled = true;
      await this.#request(type, { id, version });
      button.disabled = false;
    });
    return button;
  }
}

/** What others wrote is set as text, never as markup. */
function element(tag, className, text = "") {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
