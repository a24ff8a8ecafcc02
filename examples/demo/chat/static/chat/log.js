/** The list of messages. The texts of others are set as text, never as markup. */

const LINES_KEPT = 500;

export class Log {
  #list;
  #hint;
  #shown = new Set(); // The ids of the messages.
  #lastName = null;
  #following = true; // The list is scrolled to its end: new lines keep it there.
  #cut = null; // The line of the last cut, until a newer message ends it.
  #missed = 0;
  wasCut = false;

  constructor(list, hint) {
    this.#list = list;
    this.#hint = hint;
    list.addEventListener("scroll", () => {
      this.#following = list.scrollHeight - list.scrollTop - list.clientHeight < 40;
    });
    new ResizeObserver(() => this.#follow()).observe(list); // A phone's keyboard takes half the window.
  }

  /** The connection has ended. */
  cut() {
    this.wasCut = true;
    if (!this.#cut) {
      this.#missed = 0;
      this.#cut = this.note("");
      this.#cut.classList.add("cut");
    }
    this.#cut.textContent = "The link is cut.";
  }

  /** There is a connection again. What was missed follows. */
  restored() {
    if (this.#cut) this.#cut.textContent = "The link was cut.";
  }

  /**
   * @param {boolean} isLate  it was sent while this tab was not connected
   * @param {boolean} isMine
   */
  message({ id, name, text, at }, isLate, isMine) {
    if (this.#shown.has(id)) return;
    this.#shown.add(id);
    if (isLate && this.#cut) {
      this.#missed += 1;
      const noun = this.#missed === 1 ? "message" : "messages";
      this.#cut.textContent = `The link was cut. ${this.#missed} ${noun} came afterwards:`;
    } else {
      this.#cut = null;
    }
    const line = element("li", "message", "");
    line.dataset.id = id;
    line.classList.toggle("mine", isMine);
    line.classList.toggle("late", isLate);
    if (name !== this.#lastName) {
      const time = new Date(1000 * at).toLocaleTimeString([], { hour: "2-digit", minute: "2-digit" });
      const head = element("p", "head", "");
      head.append(element("strong", "", isMine ? "You" : name), " ", element("time", "", time));
      line.append(head);
    }
    line.append(element("p", "text", text));
    this.#append(line);
    this.#lastName = name;
  }

  note(text) {
    this.#lastName = null;
    const line = element("li", "note", text);
    this.#append(line);
    return line;
  }

  #append(line) {
    this.#hint.hidden = true;
    this.#list.append(line);
    while (this.#list.children.length > LINES_KEPT) {
      this.#shown.delete(this.#list.firstElementChild.dataset.id);
      this.#list.firstElementChild.remove();
    }
    this.#follow();
  }

  #follow() {
    if (this.#following) this.#list.scrollTop = this.#list.scrollHeight;
  }
}

function element(tag, className, text) {
  const made = document.createElement(tag);
  made.className = className;
  made.textContent = text;
  return made;
}
