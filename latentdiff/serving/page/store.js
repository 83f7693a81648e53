// Finished images with their settings, in the browser's own database.

const opened = new Promise((resolve, reject) => {
  const request = indexedDB.open("latentdiff", 1);
  request.onupgradeneeded = () => request.result.createObjectStore("images", { keyPath: "id" });
  request.onsuccess = () => resolve(request.result);
  request.onerror = () => reject(request.error);
});

async function run(mode, use) {
  const store = (await opened).transaction("images", mode).objectStore("images");
  const request = use(store);
  return new Promise((resolve, reject) => {
    request.onsuccess = () => resolve(request.result);
    request.onerror = () => reject(request.error);
  });
}

export const saveImage = image => run("readwrite", store => store.put(image));
export const removeImage = id => run("readwrite", store => store.delete(id));
export const allImages = () => run("readonly", store => store.getAll());
