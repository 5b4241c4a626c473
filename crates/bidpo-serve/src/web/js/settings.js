// Settings: in this browser (`kept`), or in this tab until it is closed (`tab`).

const over = (storage) => ({
  get(key, otherwise) {
    try { return JSON.parse(storage().getItem("bidpo." + key)) ?? otherwise; } catch { return otherwise; }
  },
  /** False where the browser keeps nothing, or not so much. */
  set(key, value) {
    try { storage().setItem("bidpo." + key, JSON.stringify(value)); return true; } catch { return false; }
  },
  remove(key) {
    try { storage().removeItem("bidpo." + key); } catch { /* nothing is kept, so nothing is there */ }
  },
});

export const kept = over(() => localStorage);
export const tab = over(() => sessionStorage);
