export const demo = async (_o: { keep: boolean; data_dir: string | undefined }): Promise<number> => 0;
