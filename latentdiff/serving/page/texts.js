// All texts of the page in each language, and their assignment to elements.

const TEXTS = {
  en: {
    name: "English", theme: "Light or dark", prompt: "Prompt", promptHint: "a red apple",
    weightHint: "Ctrl ↑ and Ctrl ↓ change the weight of the selected words. Ctrl Enter generates.",
    negative: "Negative prompt", generate: "Generate", width: "Width", height: "Height", steps: "Steps",
    guidance: "Guidance", count: "Images", sampler: "Sampler", seed: "Seed", random: "random", keepSeed: "Keep the seed",
    model: "Model", loras: "LoRAs (weight)", input: "Input image",
    dropHint: "Choose an image to start from, or drop one anywhere on the page. A PNG with a recipe fills in the form.",
    chooseImage: "Choose an input image", strength: "Strength", extendLeft: "Extend left", extendRight: "Extend right",
    extendTop: "Extend top", extendBottom: "Extend bottom", extendHint: "Drag the handles, or use the arrow keys on them, to paint beyond the edges.",
    extendedSize: (w, h) => `Extended to ${w} × ${h} pixels`, pixels: n => `${n} pixels`, paintMask: "Paint a mask", removeInput: "Remove the image",
    queue: "In progress", gallery: "Gallery", compare: "Compare the two selected",
    empty: "No images yet. Write a prompt and generate your first image.", viewer: "Image", painter: "Mask: white is repainted",
    brush: "Brush", blur: "Blur", erase: "Erase", undo: "Undo", clear: "Clear", done: "Done", cancel: "Cancel",
    waiting: n => `Waiting, number ${n} in the queue`, step: (a, b) => `Step ${a} of ${b}`, remaining: s => `about ${s} s left`,
    again: "Use these settings", asInput: "Use as input", download: "Download", remove: "Delete", close: "Close",
    select: "Select for comparison", open: p => `Open: ${p}`, preview: "Preview", lost: "The server does not answer. Trying again…",
    noAnswer: "The server does not answer; what you entered is kept. Try again in a few seconds.",
    gone: "The server no longer has this job; it was restarted.", loading: "Loading the model…", enter: "Continue", previous: "Previous", next: "Next",
    needKey: "This server requires a key. Enter it:",
    queueFull: s => `The server's queue is full. Try again in about ${s} s; your settings are kept.`,
    emptyPrompt: "Write a prompt first.", notImage: n => `${n} is not an image; drop a PNG, JPEG or WebP file.`,
    unreadableImage: n => `${n} cannot be read as an image; save it again as PNG, JPEG or WebP.`,
    tooLarge: (n, m) => `${n} is larger than this server's limit of ${m} MB; reduce it first.`,
    noModel: m => `The recipe names the model ${m}, which this server does not have; the other settings were filled in.`,
    restore: "Restore the removed image", storageFull: "The storage of this browser is full. New images are lost when the page is closed; download or delete some.",
    paintHint: "Drag to paint. By keyboard: arrow keys move the brush, Space paints, Shift with an arrow key draws, Ctrl Z undoes.",
    notUsed: s => `Not used from the recipe: ${s}.`, removeCarried: "Leave out", dismiss: "Dismiss", size: "Size",
    pages: "Pages", generatePage: "Generate", trainPage: "Train", finetunes: "Fine-tunes", newFinetune: "New fine-tune",
    noFinetunes: "None yet.", finetuneName: "Name", nameHint: "my-style", pictures: "Pictures", create: "Create",
    uploadOwn: "Upload my own", createFirst: "Enter a name and create the fine-tune, then drop the pictures.", nameFirst: "Enter a name first.",
    welcomeTitle: "Teach the model your own pictures",
    welcome1: "Create a fine-tune from a folder on the server, or upload pictures. 10 to 50 are a good start.",
    welcome2: "Check the pictures, edit their captions, and start training. Your own files are never changed.",
    welcome3: "Watch the samples improve and try the result at once. You can close this page at any time.",
    offTitle: "Fine-tuning is off on this server", offText: "The administrator of the server can turn it on. It then trains on pictures below the named folder and on uploaded pictures:",
    is_new: "not started", is_running: "training", is_stopping: "stopping", is_stopped: "stopped", is_failed: "failed", is_finished: "finished",
    copyFinetune: "Copy", progress: "Progress", stop: "Stop", resume: "Resume", tryLora: "Try it", trainTo: "Train to step",
    continueTraining: "Continue", saving: "Finishing the step and saving…", preparing: "Preparing: loading the model and encoding the pictures…",
    remainingTime: s => `about ${duration(s, "h", "min", "s")} left`, downloadLora: n => `Download ${n}.safetensors`,
    addPictures: "Add pictures", addPicturesHint: "Choose pictures, or drop them anywhere on the page. Text files of the same names become captions.",
    pictureCount: n => (n === 1 ? "1 picture" : `${n} pictures`), unreadable: "cannot be read", captionHint: "What the picture shows",
    captionOf: n => `Captions of ${n}, one a line`, removePicture: n => `Leave out ${n}`, captionsSaved: "Captions saved", uploading: (a, b) => `Uploading ${a} of ${b}…`,
    andMore: n => `And ${n} more.`, settings: "Settings", trigger: "Trigger words, before every caption", triggerHint: "sks style",
    method: "Method", learningRate: "Learning rate", rank: "Rank", resolution: "Resolution", automatic: "automatic", ofModel: "the model's",
    trainText: "Train the text encoder too", skipBad: "Leave out pictures with errors", checkPictures: "Check", startTraining: "Start training",
    checking: "Checking every picture and caption…", picturesFirst: "Add pictures first.",
    checkGood: n => (n === 1 ? "The picture can be used." : `All ${n} pictures can be used.`), checkErrors: (a, b) => `${a} of ${b} pictures cannot be used; the reasons are below the pictures.`,
    finding: (kind, detail) => `${kind}: ${detail}`, toSettings: "To the settings",
    checkWarnings: n => (n === 1 ? "1 warning." : `${n} warnings.`), trainedAt: s => `Trained at ${s}.`, enlarged: n => `${n} are enlarged.`,
    fixedHint: "Pictures and settings are fixed once training has started. Copy the fine-tune to change them.",
    loss: "Loss", heldOutLoss: "Held-out loss", lossNow: v => `Loss, now ${v}`, samples: "Samples", before: "before", atStep: n => `step ${n}`,
    sampleOf: (c, n) => `${c}, step ${n}`, deleteQuestion: n => `Delete ${n} with its copies of the pictures, its checkpoints and its LoRAs? The files the pictures were copied from stay.`,
  },
  zh: {
    name: "中文", theme: "浅色或深色", prompt: "提示词", promptHint: "一个红苹果",
    weightHint: "Ctrl ↑ 和 Ctrl ↓ 调整所选文字的权重。Ctrl Enter 开始生成。",
    negative: "反向提示词", generate: "生成", width: "宽度", height: "高度", steps: "步数",
    guidance: "引导强度", count: "数量", sampler: "采样器", seed: "种子", random: "随机", keepSeed: "保持种子",
    model: "模型", loras: "LoRA（权重）", input: "输入图像",
    dropHint: "选择一张起始图像，或拖到页面任意位置。带有配方的 PNG 会填写表单。",
    chooseImage: "选择输入图像", strength: "强度", extendLeft: "向左扩展", extendRight: "向右扩展",
    extendTop: "向上扩展", extendBottom: "向下扩展", extendHint: "拖动手柄，或在手柄上按方向键，可向外扩展画面。",
    extendedSize: (w, h) => `扩展到 ${w} × ${h} 像素`, pixels: n => `${n} 像素`, paintMask: "绘制蒙版", removeInput: "移除图像",
    queue: "进行中", gallery: "图库", compare: "比较所选两张",
    empty: "这里还没有图像。写下提示词，生成第一张图像。", viewer: "图像", painter: "蒙版：白色区域将重绘",
    brush: "画笔", blur: "模糊", erase: "擦除", undo: "撤销", clear: "清空", done: "完成", cancel: "取消",
    waiting: n => `等待中，队列第 ${n} 位`, step: (a, b) => `第 ${a} 步，共 ${b} 步`, remaining: s => `约剩 ${s} 秒`,
    again: "使用这些设置", asInput: "作为输入", download: "下载", remove: "删除", close: "关闭",
    select: "选择以比较", open: p => `打开：${p}`, preview: "预览", lost: "服务器没有响应，正在重试…",
    noAnswer: "服务器没有响应；您的输入会保留，请几秒后再试。",
    gone: "服务器已重启，此任务不再存在。", loading: "正在加载模型…", enter: "继续", previous: "上一张", next: "下一张",
    needKey: "此服务器需要密钥，请输入：",
    queueFull: s => `服务器队列已满，请约 ${s} 秒后再试；设置会保留。`,
    emptyPrompt: "请先写提示词。", notImage: n => `${n} 不是图像；请拖入 PNG、JPEG 或 WebP 文件。`,
    unreadableImage: n => `无法将 ${n} 读取为图像；请重新保存为 PNG、JPEG 或 WebP。`,
    tooLarge: (n, m) => `${n} 超过服务器 ${m} MB 的上限；请先缩小。`,
    noModel: m => `配方使用模型 ${m}，此服务器没有；其他设置已填入。`,
    restore: "恢复已删除的图像", storageFull: "浏览器存储空间已满。关闭页面后新图像会丢失；请下载或删除一些图像。",
    paintHint: "拖动以绘制。键盘：方向键移动画笔，空格绘制，Shift 加方向键画线，Ctrl Z 撤销。",
    notUsed: s => `配方中未使用：${s}。`, removeCarried: "不使用", dismiss: "关闭提示", size: "尺寸",
    pages: "页面", generatePage: "生成", trainPage: "训练", finetunes: "微调", newFinetune: "新建微调",
    noFinetunes: "还没有。", finetuneName: "名称", nameHint: "my-style", pictures: "图片", create: "创建",
    uploadOwn: "上传自己的图片", createFirst: "请先输入名称并创建微调，再拖入图片。", nameFirst: "请先输入名称。",
    welcomeTitle: "让模型学习您的图片",
    welcome1: "用服务器上的文件夹创建微调，或上传图片。10 到 50 张就是好的开始。",
    welcome2: "检查图片，编辑说明文字，然后开始训练。您自己的文件不会被修改。",
    welcome3: "观察样图的变化，随时试用结果。此页面可以随时关闭。",
    offTitle: "此服务器未开启微调", offText: "运行服务器的人可以开启它，之后可用所指定文件夹下的图片和上传的图片训练：",
    is_new: "未开始", is_running: "训练中", is_stopping: "正在停止", is_stopped: "已停止", is_failed: "失败", is_finished: "已完成",
    copyFinetune: "复制", progress: "进度", stop: "停止", resume: "继续", tryLora: "试用", trainTo: "训练到第几步",
    continueTraining: "继续训练", saving: "正在完成当前步并保存…", preparing: "准备中：正在加载模型并编码图片…",
    remainingTime: s => `约剩 ${duration(s, "小时", "分", "秒")}`, downloadLora: n => `下载 ${n}.safetensors`,
    addPictures: "添加图片", addPicturesHint: "选择图片，或拖到页面任意位置。同名文本文件会成为说明文字。",
    pictureCount: n => `${n} 张图片`, unreadable: "无法读取", captionHint: "图片的内容",
    captionOf: n => `${n} 的说明文字，每行一条`, removePicture: n => `不使用 ${n}`, captionsSaved: "说明文字已保存", uploading: (a, b) => `正在上传第 ${a} 张，共 ${b} 张…`,
    andMore: n => `还有 ${n} 个。`, settings: "设置", trigger: "触发词，置于每条说明文字之前", triggerHint: "sks style",
    method: "方法", learningRate: "学习率", rank: "秩", resolution: "分辨率", automatic: "自动", ofModel: "与模型相同",
    trainText: "同时训练文本编码器", skipBad: "跳过有错误的图片", checkPictures: "检查", startTraining: "开始训练",
    checking: "正在检查每张图片和说明文字…", picturesFirst: "请先添加图片。",
    checkGood: n => `${n} 张图片都可以使用。`, checkErrors: (a, b) => `${b} 张图片中有 ${a} 张无法使用，原因见图片下方。`,
    finding: (kind, detail) => `${FINDINGS_ZH[kind] ?? kind}：${detail}`, toSettings: "前往设置",
    checkWarnings: n => `${n} 条警告。`, trainedAt: s => `训练尺寸：${s}。`, enlarged: n => `${n} 张被放大。`,
    fixedHint: "训练开始后，图片和设置不能再更改。要更改请复制此微调。",
    loss: "损失", heldOutLoss: "验证损失", lossNow: v => `损失，现为 ${v}`, samples: "样图", before: "训练前", atStep: n => `第 ${n} 步`,
    sampleOf: (c, n) => `${c}，第 ${n} 步`, deleteQuestion: n => `删除 ${n} 及其图片副本、检查点和 LoRA？原来的图片文件会保留。`,
  },
};

// The kinds of findings of the data check.
const FINDINGS_ZH = { unreadable: "无法读取", "too small": "太小", "too narrow": "太窄", "no caption": "没有说明文字", duplicate: "重复",
  "long caption": "说明文字太长", "ignored file": "未使用的文件", "small buckets": "同尺寸图片太少" };

// Seconds in the two largest units.
function duration(seconds, h, min, s) {
  const whole = Math.ceil(seconds);
  if (whole < 60) return `${whole} ${s}`;
  if (whole < 3600) return `${Math.ceil(whole / 60)} ${min}`;
  return `${Math.floor(whole / 3600)} ${h} ${Math.floor(whole % 3600 / 60)} ${min}`;
}

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
