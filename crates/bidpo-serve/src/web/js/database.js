// Chats in this browser's IndexedDB, one record each.

const NAME = "bidpo";
const CHATS = "chats";

const done = (request) => new Promise((resolve, reject) => {
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

let opened = null;
function open() {
  opened ??= new Promise((resolve, reject) => {
    const request = indexedDB.open(NAME, 1);
    request.onupgradeneeded = () => request.result.createObjectStore(CHATS, { keyPath: "id" });
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
  return opened;
}

const store = async (mode) => (await open()).transaction(CHATS, mode).objectStore(CHATS);

/** All records, as they are. Each function rejects where the browser keeps none (in some private windows), or has no space. */
export const allChats = async () => done((await store("readonly")).getAll());
export const putChat = async (chat) => done((await store("readwrite")).put(chat));
export const removeChat = async (id) => done((await store("readwrite")).delete(id));
