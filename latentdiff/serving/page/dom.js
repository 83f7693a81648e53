// Short names for common DOM operations.

export const byId = id => document.getElementById(id);

export const make = (tag, values = {}, ...children) => {
  const element = Object.assign(document.createElement(tag), values);
  element.append(...children);
  return element;
};

// The address of an image that is not loaded yet.
export const EMPTY = "data:image/svg+xml,<svg xmlns='http://www.w3.org/2000/svg'/>";

// Sets the source of an image to a picture on the server, which may require the key.
export async function showImage(image, call, path) {
  const blob = await (await call(path)).blob();
  image.src = URL.createObjectURL(blob);
  image.onload = () => URL.revokeObjectURL(image.src);
}
