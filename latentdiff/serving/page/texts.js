// Every text of the page, in each language, and how elements take them.

const TEXTS = {
  en: {
    name: "English", theme: "Light or dark", prompt: "Prompt", promptHint: "a red apple",
    weightHint: "Ctrl ↑ and Ctrl ↓ change the weight of the selected words. Ctrl Enter generates.",
    negative: "Negative prompt", generate: "Generate", width: "Width", height: "Height", steps: "Steps",
    guidance: "Guidance", count: "Images", sampler: "Sampler", seed: "Seed", random: "random", keepSeed: "Keep the seed",
    model: "Model", loras: "LoRAs (weight)", input: "Input image",
    dropHint: "Choose an image to start from, or drop one anywhere on the page. A PNG with a recipe fills in the form.",
    chooseImage: "Choose an input image", strength: "Strength", extendLeft: "Extend left", extendRight: "Extend right",
    extendTop: "Extend top", extendBottom: "Extend bottom", paintMask: "Paint a mask", removeInput: "Remove the image",
    queue: "In progress", gallery: "Gallery", compare: "Compare the two selected",
    empty: "Nothing here yet. Write a prompt and generate your first image.", viewer: "Image", painter: "Mask: white is repainted",
    brush: "Brush", blur: "Blur", erase: "Erase", undo: "Undo", clear: "Clear", done: "Done", cancel: "Cancel",
    waiting: n => `Waiting, number ${n} in the queue`, step: (a, b) => `Step ${a} of ${b}`, remaining: s => `about ${s} s left`,
    again: "Use these settings", asInput: "Use as input", download: "Download", remove: "Delete", close: "Close",
    select: "Select for comparison", open: p => `Open: ${p}`, preview: "Preview", lost: "The server does not answer. Trying again…",
    gone: "The server no longer has this job; it was restarted.", needKey: "This server requires a key. Enter it:",
    emptyPrompt: "Write a prompt first.", notImage: n => `${n} is not an image; drop a PNG, JPEG or WebP file.`,
    tooLarge: (n, m) => `${n} is larger than this server's limit of ${m} MB; reduce it first.`,
    noModel: m => `The recipe names the model ${m}, which this server does not have; the other settings were filled in.`,
    dismiss: "Dismiss", size: "Size",
  },
  zh: {
    name: "中文", theme: "浅色或深色", prompt: "提示词", promptHint: "一个红苹果",
    weightHint: "Ctrl ↑ 和 Ctrl ↓ 调整所选文字的权重。Ctrl Enter 开始生成。",
    negative: "反向提示词", generate: "生成", width: "宽度", height: "高度", steps: "步数",
    guidance: "引导强度", count: "数量", sampler: "采样器", seed: "种子", random: "随机", keepSeed: "保持种子",
    model: "模型", loras: "LoRA（权重）", input: "输入图像",
    dropHint: "选择一张起始图像，或拖到页面任意位置。带有配方的 PNG 会填写表单。",
    chooseImage: "选择输入图像", strength: "强度", extendLeft: "向左扩展", extendRight: "向右扩展",
    extendTop: "向上扩展", extendBottom: "向下扩展", paintMask: "绘制蒙版", removeInput: "移除图像",
    queue: "进行中", gallery: "图库", compare: "比较所选两张",
    empty: "这里还没有图像。写下提示词，生成第一张图像。", viewer: "图像", painter: "蒙版：白色区域将重绘",
    brush: "画笔", blur: "模糊", erase: "擦除", undo: "撤销", clear: "清空", done: "完成", cancel: "取消",
    waiting: n => `等待中，队列第 ${n} 位`, step: (a, b) => `第 ${a} 步，共 ${b} 步`, remaining: s => `约剩 ${s} 秒`,
    again: "使用这些设置", asInput: "作为输入", download: "下载", remove: "删除", close: "关闭",
    select: "选择以比较", open: p => `打开：${p}`, preview: "预览", lost: "服务器没有响应，正在重试…",
    gone: "服务器已重启，此任务不再存在。", needKey: "此服务器需要密钥，请输入：",
    emptyPrompt: "请先写提示词。", notImage: n => `${n} 不是图像；请拖入 PNG、JPEG 或 WebP 文件。`,
    tooLarge: (n, m) => `${n} 超过服务器 ${m} MB 的上限；请先缩小。`,
    noModel: m => `配方使用模型 ${m}，此服务器没有；其他设置已填入。`,
    dismiss: "关闭提示", size: "尺寸",
  },
};

let language = localStorage.getItem("language") || (navigator.language.startsWith("zh") ? "zh" : "en");

export const text = (key, ...values) => {
  const found = TEXTS[language][key];
  return typeof found === "function" ? found(...values) : found;
};

export function showTexts() {
  document.documentElement.lang = language;
  for (const element of document.querySelectorAll("[data-text]")) element.textContent = text(element.dataset.text);
  for (const element of document.querySelectorAll("[data-placeholder]")) element.placeholder = text(element.dataset.placeholder);
  for (const element of document.querySelectorAll("[data-alt]")) element.alt = text(element.dataset.alt);
  for (const element of document.querySelectorAll("[data-label]")) element.setAttribute("aria-label", text(element.dataset.label));
  document.getElementById("language").textContent = TEXTS[language === "en" ? "zh" : "en"].name;
}

export function switchLanguage() {
  language = language === "en" ? "zh" : "en";
  localStorage.setItem("language", language);
  showTexts();
}
